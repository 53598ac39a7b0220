"""Rows that are readings.

readings       their columns, cut into segments shard by shard as on the device
"""
