"""What a trained student is worth: against its teachers, on tasks, on images.

May import what `student` may; nothing of the training loop imports a module of this folder but
`student.probe`, which needs `retention`.
"""
