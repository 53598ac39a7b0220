"""What devices, server and worker train and run models with: plain torch loops to fit, predict,
clip and load weights; factors, low-rank ones in a module; teacher, which scores whole windows;
torch_device, the CPU or GPU that it scores on; onnx_model, a version in onnxruntime with its
self-test, and onnx_session, the seam to onnxruntime. The last two load no torch.

The only place below `tasks` that imports torch. Knows streams.contract, and of a teacher its drift
reference and the keys that sign it.
"""
