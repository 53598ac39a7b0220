"""A teacher's answers: it scores the rows of one device's window together.

keys           the device and the window of each row
around         in which shards the rows of a shard's windows are
shard_rows     the rows of a shard, and their windows
teaching       the teacher's outputs of a shard's rows
"""
