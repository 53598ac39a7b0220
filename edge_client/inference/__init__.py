"""From a segment to an answer: the loop, the ONNX engine, and the slots.

`slots` holds the active and the previous version, `engine` decides whether a version on trial has
failed. No network and no training here.
"""
