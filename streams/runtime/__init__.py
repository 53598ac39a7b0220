"""What every long-running process needs around its work.

disk (atomic writes), key_files (Ed25519 keys on disk), acceptance (which signed decisions a process
follows, persisted), health (metrics, readiness and liveness over HTTP on loopback), failpoints
(crash at a numbered step, for tests).

Knows streams.contract alone.
"""
