"""Code that makes texts and image-caption pairs; it holds no data files.

Imports nothing else of this project. datasets is imported inside the functions that need it, and so
is pyarrow but in `pairs` and what is imported by that alone: a command can check where a recipe's
texts and pairs come from without paying for either.
"""
