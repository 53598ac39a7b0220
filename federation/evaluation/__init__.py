"""Evaluation of a candidate: `promotion_gate` decides, `evidence` collects.

accuracy, device_metrics (reported by devices), recent_windows (stored windows), quantization (a
graph without torch, and in int8).
"""
