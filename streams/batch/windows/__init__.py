"""A teacher's answers.

windows        the device and window of each row, in which shards they are, the teacher's outputs
shard_rows     the rows of a shard, whatever they are cut from, and their windows
"""
