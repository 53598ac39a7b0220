"""Rows that are readings, cut into segments by the device's own code.

columns        which columns are time, device, channels and label
carry          the readings of a shard's first segments, kept beside the plan
cutting        the readings of a shard as rows of segments
"""
