"""Benchmark of the scoring worker: `make bench-streams`, results in docs/benchmarks/streams.md.

    contenders   the worker, its limit, and other frameworks, a module each
    feed         backlogs, devices in wall time, tasks and teachers that are made up
    throughput   the contenders in turns
    scaling      the worker with 10 to 10,000 devices, and its memory
    delay        from a window's close to its rows in the store

A backlog is put on `<task>.events` first, by a process that is gone when the clock starts. The
clock and the CPU time of a contender start with its first message (the worker's: when it says that
it is ready), and stop when its last row is done (the worker's: when the store has it).
"""
