"""Signed model versions and the decisions about them.

registry (the chain and its files), publisher (announces to devices), restoring (after a backup was
copied back), catalog (reading and verifying), key_rotation, manual (promote, roll back, pause,
resume, prune).
"""
