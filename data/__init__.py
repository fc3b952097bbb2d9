"""Code that makes texts and image-caption pairs; it holds no data files.

Imports nothing else of this project. pyarrow and datasets are imported inside the functions
that need them, so that a command can check a recipe's corpus without paying for them.
"""
