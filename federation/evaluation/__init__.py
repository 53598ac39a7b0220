"""Whether a candidate is better: `promotion_gate` decides, `evidence` collects.

accuracy, device_metrics (what devices report), recent_windows (stored windows answered again),
onnx_runner (running a graph without torch).
"""
