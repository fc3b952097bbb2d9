"""Ablations from one cache as one command: arms, seeds, error bars.

`spec` is the file, `plan` what is to be trained and what is shared, `runner` and `on_ray` train it,
`statistics` and `results` say what came of it. May import what `student` may.
"""
