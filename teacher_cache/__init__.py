"""Phase 1: run the teachers once and keep their vectors.

`format` imports nothing else of this project, `reader` only `format` and how shards are opened,
mapped and decoded; neither imports torch: a trainer opens a cache with them alone. Everything else
here may also use `data`; nothing here may import `student` or `cli`. Only `encoders` loads a
teacher.
"""
