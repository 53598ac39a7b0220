"""Batch scoring: the rows of stored files, answered once each by one model version.

documents      the job's folder and the manifest, as JSON documents
inputs         the files that are named, and their columns
plan           hashing the input, and cutting it into shards
rows           rows as arrays: segments, labels, and what is wrong with a row
tables         the seam to Parquet and Arrow IPC files
table_rows     reading a shard of these
json_rows      reading a shard of JSON Lines
submission     what is checked before a job exists, and its specification
answers        rows and outputs of the model as a table
output         writing a shard's output file
job_folder     the job's folder on disk
job            the numbered steps; docs/architecture/batch.md

Knows the shared parts of streams alone: neither device nor federation nor Kafka's worker.
"""
