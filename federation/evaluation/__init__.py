"""Evaluation of a candidate: `promotion_gate` decides, `evidence` collects.

accuracy, device_metrics (reported by devices), recent_windows (stored windows), onnx_runner (a
graph without torch).
"""
