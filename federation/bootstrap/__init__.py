"""Before there is a fleet: the first model and the teacher, from central data.

initial_model, dataset, onnx_export, self_test (what devices verify), drift_reference, teacher
(replacing it). Uses torch.
"""
