"""Phase 1: run the teachers once and keep their vectors.

`format` and `reader` import nothing else of this project and no torch: a trainer opens a cache
with them alone. Everything else here may also use `data`; nothing here may import `student` or
`cli`. Only `encoders` loads a teacher.
"""
