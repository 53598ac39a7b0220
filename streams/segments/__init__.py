"""Segmentation: readings in, labelled segments out.

Devices, the first model's training data and simulations share this implementation, so a recording
gives the same segments everywhere. Knows streams.contract alone.
"""
