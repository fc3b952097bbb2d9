"""The only code that loads a teacher: one module per architecture, behind one protocol.

May import `format`, `teachers`, `models` and `files` of `teacher_cache`. The trainer never
imports it.
"""
