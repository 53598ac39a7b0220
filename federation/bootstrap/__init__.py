"""Before there is a fleet: the first model and the teacher, from central data.

initial_model, dataset, onnx_export, drift_reference, teacher (its replacement). Uses torch.
"""
