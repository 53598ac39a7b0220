"""Benchmark of the scoring worker: `make bench-streams`, results in docs/benchmarks/streams.md.

Every contender is a process of its own and runs alone, on the machine that also runs the broker:

    worker       `tidewheel worker` as a user starts it, with its default settings
    limit        a hand-written aiokafka loop: the same messages, the same teacher, nothing else
    kafka_ml     Kafka-ML's inference loop: a message, a forward pass and a flush for every row
    quix_app     the worker's job in Quix Streams
    wax_flow     the worker's job in Bytewax

A backlog is put on `<task>.events` first, by a process that is gone when the clock starts. The
clock and the CPU time of a contender start with its first message (the worker's: when it says that
it is ready), and stop when its last row is done (the worker's: when the store has it).
"""
