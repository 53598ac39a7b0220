"""Before there is a fleet: the first model and the teacher, from central data.

initial_model, first_models, dataset (with the drift reference), onnx_export (what becomes ONNX, of
torch and of TorchScript), replacement (models that a user brings later). Uses torch.
"""
