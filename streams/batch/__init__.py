"""Batch scoring: the rows of stored files, answered once each by one model version.

documents      the job's folder and the manifest, as JSON documents
inputs         the files that are named, and what is checked before a job is submitted
plan           hashing the input, and cutting it into shards
rows           rows as arrays: segments, labels, and what is wrong with a row
parquet_rows   reading a shard of Parquet
json_rows      reading a shard of JSON Lines
answers        rows and outputs of the model as a table
output         writing a shard's output file
job_folder     the job's folder on disk
job            the numbered steps; docs/architecture/batch.md

Knows the shared parts of streams alone: neither device nor federation nor Kafka's worker.
"""
