"""The commands: parse, validate, call one function. Imports anything; nobody imports it.

Nothing heavy is imported at start, so that `--help` answers at once.
"""
