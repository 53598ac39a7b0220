"""Write events of your own and read what the workers make of them, without Tidewheel's package.

    python send_events.py HOST:PORT TASK CHANNELS SAMPLES CLASSES [EVENTS]

TASK is the task's name and version: wrist.v1. One message of the topic TASK.events is an Arrow
stream of consecutive events of one device, with the headers schema, device, epoch, first and last.
`epoch` names one run of this producer; `seq` counts its events from 0 without holes. The key is the
device: its events stay in order.
"""

import json
import sys
import time
import uuid

import numpy as np
import pyarrow as pa
from kafka import KafkaConsumer, KafkaProducer

if len(sys.argv) not in (6, 7):
    sys.exit(__doc__)
bootstrap, task = sys.argv[1:3]
channels, samples, classes, events = (
    int(word) for word in [*sys.argv[3:6], *sys.argv[6:], "60"][:4]
)
TIME, FLOATS = pa.timestamp("us", "UTC"), pa.list_(pa.float32())
PATIENCE_S = 60  # without a message
device, epoch = "my-device", f"run-{uuid.uuid4().hex[:8]}"
began_s = time.time()
begin_us = int(1e6 * (began_s - events))  # one event a second, up to now
draw = np.random.default_rng(0)

producer = KafkaProducer(bootstrap_servers=bootstrap, acks="all")
for first in range(0, events, 20):
    seqs = range(first, min(first + 20, events))
    rows = pa.table(
        {
            "seq": pa.array(seqs, pa.int64()),
            "time": pa.array([begin_us + seq * 1_000_000 for seq in seqs], TIME),
            "model": ["my-model-1"] * len(seqs),
            "outputs": pa.array(draw.normal(size=(len(seqs), classes)).tolist(), FLOATS),
            "label": pa.array([None] * len(seqs), FLOATS),
            "segment": pa.array(  # (channels x samples), channel by channel
                draw.normal(size=(len(seqs), channels * samples)).tolist(), FLOATS
            ),
        }
    )
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_table(rows)
    about = {"schema": "events/1", "device": device, "epoch": epoch}
    about |= {"first": str(seqs[0]), "last": str(seqs[-1])}
    headers = [(name, value.encode()) for name, value in about.items()]
    producer.send(f"{task}.events", sink.getvalue().to_pybytes(), device.encode(), headers)
producer.flush()
print(f"sent {events} events of {device}, epoch {epoch}")  # noqa: T201

consumer = KafkaConsumer(
    *(f"{task}.{name}" for name in ("scores", "windows", "dead-letters")),
    bootstrap_servers=bootstrap,
    auto_offset_reset="earliest",
    consumer_timeout_ms=1000 * PATIENCE_S,
)
scored = 0
for message in consumer:
    if message.key != device.encode():
        continue
    if message.topic.endswith(".dead-letters"):
        about = {name: value.decode() for name, value in message.headers}
        if about.get("original-epoch") == epoch:
            sys.exit(f"refused: {about.get('reason')}: {about.get('detail')}")
        continue
    if message.topic.endswith(".windows"):
        if message.timestamp < 1000 * began_s:  # of an earlier run
            continue
        report = json.loads(message.value)
        print(f"window {report['window_us']}: {report['events']} events")  # noqa: T201
        continue
    table = pa.ipc.open_stream(message.value).read_all()
    scored += sum(value == epoch for value in table.column("epoch").to_pylist())
    if scored == events:
        break
if scored < events:
    sys.exit(
        f"{scored} of {events} events are scored, nothing for {PATIENCE_S} s: is a worker there?"
    )
print(f"all {scored} events are scored")  # noqa: T201
