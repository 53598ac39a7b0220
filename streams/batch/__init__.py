"""Batch scoring: the rows of stored files, answered once each by one model version.

records    the documents of a job, and rows as arrays
sources    the files that are named, cut into shards and read
sinks      where answers are written
jobs       a job from its submission to its manifest: docs/architecture/batch.md
queue      jobs that wait, and schedules

Knows the shared parts of streams alone: neither device nor federation nor Kafka's worker.
"""
