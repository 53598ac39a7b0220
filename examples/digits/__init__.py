"""A model that exists: handwritten digits, read by a network that was trained before.

task       the task, with the weights that it begins with
pretrain   trains these weights
"""
