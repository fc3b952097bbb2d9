"""How a trained student leaves: folders that load with no code of ours, each with a model card.

May import what `student` may. The libraries that read the folders are not needed to write them;
`onnx_model` alone needs an extra.
"""
