"""Support for long-running processes.

disk (atomic writes), object_store (files in a folder or a bucket, also for Arrow), logs (a line
when a state changes, rotation of log files), key_files (Ed25519 keys on disk), acceptance (the
signed decisions that a process accepts, persisted), health (metrics, readiness and liveness over
HTTP on loopback), tracing (spans to a collector, if one is set), process (signals, its end, memory
that only a start needs), failpoints (crash at a numbered step, for tests).

Knows streams.contract alone.
"""
