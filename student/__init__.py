"""Phase 2: train, measure and export a student from a finished teacher cache.

May import `teacher_cache.format`, `teacher_cache.reader` and `data.images`, nothing else of ours:
no teacher is ever loaded here.
"""
