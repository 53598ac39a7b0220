"""Benchmark of growth: `make bench-scale`, results in docs/benchmarks/scale.md.

drains      one backlog through real workers: CPU by process, bytes, commits, memory
events      what a message, a row and a window cost; workers, partitions, devices
held        many devices whose windows are all open at once
commits     the store: cost of a commit, writers at once, files and log, maintenance
controller  a fleet's states and reports, read by a real controller
rounds      a SuperLink with real SuperNodes: idle, and in rounds
fit         lines through what was measured, and how well they hold
fleet       arithmetic: from slopes to the needs of a fleet
"""
