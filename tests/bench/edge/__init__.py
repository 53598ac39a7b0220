"""Benchmark of a device's agent: `make bench-edge`, results in docs/benchmarks/edge.md.

Every figure is of a process of its own, on the machine that also runs the broker:

    latency      answers: the real agent, whose answers are timed beside bare onnxruntime calls;
                 alone, while it fine-tunes, without a broker, on a full disk
    memory       `tidewheel edge run` as a user starts it: memory, time to the first answer
    wire         bytes of an event on the topic, against JSON
    sustained    pump.py: recorder, spool and uplink against a bare kafka-python producer
    eager        answers again, with torch in onnxruntime's place
    installed    bytes that `pip install tidewheel[edge]` and `[edge-train]` bring
"""
