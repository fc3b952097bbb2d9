"""The parts of `benchmarks/quality.py`: which recipe keeps most of a teacher for the same work?

May import everything of ours: it uses what a user would use, recipes, caches and the trainer.
"""
