"""The output of a batch job.

output         writing a shard's output file
"""
