"""Batch scoring: the rows of stored files, answered once each by one model version.

records    the documents of a job, and rows as arrays
sources    the files that are named, cut into shards and read
sinks      where answers are written
jobs       a job from its submission to its manifest, the queue, and schedules:
           docs/architecture/batch.md

Knows the shared parts of streams alone: neither device nor federation nor Kafka's worker.
"""
