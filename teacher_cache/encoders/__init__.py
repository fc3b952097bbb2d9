"""The only code that loads a teacher: one module per architecture, behind one protocol.

May import `teacher_cache.format` and `teacher_cache.teachers`. The trainer never imports it.
"""
