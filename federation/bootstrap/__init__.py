"""Before there is a fleet: the first model and the teacher, from central data.

initial_model, dataset (with the drift reference), onnx_export, torchscript (what becomes ONNX),
replacement (models that a user brings later). Uses torch.
"""
