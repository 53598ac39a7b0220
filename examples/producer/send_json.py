"""Write events as JSON with a plain Kafka client.

    python send_json.py HOST:PORT TASK CHANNELS SAMPLES CLASSES [EVENTS]

TASK is the task's name and version: wrist.v1. The key of a message is the device; its value is one
event or a list of events. `tidewheel schema` prints what an event may have.
"""

import json
import random
import sys
from datetime import UTC, datetime, timedelta

from kafka import KafkaProducer

if len(sys.argv) not in (6, 7):
    sys.exit(__doc__)
bootstrap, task = sys.argv[1:3]
channels, samples, classes, events = (
    int(word) for word in [*sys.argv[3:6], *sys.argv[6:], "60"][:4]
)
device, begin = "my-device", datetime.now(UTC) - timedelta(seconds=events)


def event(n: int) -> dict[str, object]:
    """Return the event of second `n`."""
    return {
        "time": (begin + timedelta(seconds=n)).isoformat(),
        "segment": [[random.gauss(0, 1) for _ in range(samples)] for _ in range(channels)],
        "answer": random.randrange(classes),  # or the class's name
        "event_id": f"order-{n}",
    }


producer = KafkaProducer(
    bootstrap_servers=bootstrap,
    acks="all",
    key_serializer=str.encode,
    value_serializer=lambda value: json.dumps(value).encode(),
)
for first in range(0, events, 20):
    rows = [event(n) for n in range(first, min(first + 20, events))]
    producer.send(f"{task}.events", rows, device)
producer.flush()
print(f"sent {events} events of {device}")  # noqa: T201
