"""How a segment is cut: readings in, labelled segments out.

One implementation for devices, the first model's training data and simulations, so that a recording
gives the same segments everywhere. Knows streams.contract alone.
"""
