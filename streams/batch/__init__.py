"""Batch scoring: the rows of stored files, answered once each by one model version.

specification   what a job was asked for and how its input is cut, as JSON documents
progress        how far it is, and what became of its rows: the same
rows            rows as arrays: segments, labels, and what is wrong with a row
sources         the files that are named, cut into shards and read
output_files    what --to names, the output file of a shard, objects
output_tables   databases (DuckDB, SQLite, PostgreSQL) and Delta tables
jobs            a job from its submission to its manifest, the queue, and schedules:
                docs/architecture/batch.md

Knows the shared parts of streams alone: neither device nor federation nor Kafka's worker.
"""
