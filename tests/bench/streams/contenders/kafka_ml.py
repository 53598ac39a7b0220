"""The way Kafka-ML does inference.

`python -m tests.bench.streams.contenders.kafka_ml PLAN [confluent]`

For each row one message, one decoding, one forward pass, one message and a flush, as in
https://github.com/ertis-research/kafka-ml `model_inference`. Its first version has kafka-python and
commits after each message (`inference.py`); the present one for PyTorch has confluent-kafka and
commits after 16 (`pytorch/inference.py`). A message is a segment in its RAW format. Logging is left
out, and gradients are not recorded, which it does.
"""

import json
import os
import sys
from collections.abc import Callable, Iterator

import confluent_kafka
import kafka
import numpy as np
import torch

from streams.learning.learning import build_teacher
from tests.bench.meter import Meter
from tests.bench.streams.feed.plan import Plan

COMMIT_EVERY = 16  # MAX_MESSAGES_TO_COMMIT of pytorch/inference.py

Send = Callable[[bytes], None]


def with_kafka_python(plan: Plan) -> tuple[Iterator[bytes], Send, Callable[[], None]]:
    """Messages, sending with a flush, and what is done after each."""
    consumer = kafka.KafkaConsumer(
        plan.topic,
        bootstrap_servers=plan.bootstrap,
        group_id=f"kafka-ml-{os.getpid()}",
        enable_auto_commit=False,
        auto_offset_reset="earliest",
    )
    producer = kafka.KafkaProducer(bootstrap_servers=plan.bootstrap)

    def send(value: bytes) -> None:
        producer.send(f"{plan.topic}-out", value)
        producer.flush()

    return (message.value for message in consumer), send, consumer.commit


def with_confluent(plan: Plan) -> tuple[Iterator[bytes], Send, Callable[[], None]]:
    """The same."""
    consumer = confluent_kafka.Consumer(
        {
            "bootstrap.servers": plan.bootstrap,
            "group.id": f"kafka-ml-{os.getpid()}",
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
        }
    )
    consumer.subscribe([plan.topic])
    producer = confluent_kafka.Producer({"bootstrap.servers": plan.bootstrap})
    handled = 0

    def messages() -> Iterator[bytes]:
        while True:
            message = consumer.poll(1.0)
            if message is not None and not message.error():
                yield message.value() or b""

    def send(value: bytes) -> None:
        producer.produce(f"{plan.topic}-out", value)
        producer.flush()

    def done() -> None:
        nonlocal handled
        handled += 1
        if handled % COMMIT_EVERY == 0:
            consumer.commit()

    return messages(), send, done


@torch.no_grad()
def run(plan: Plan, *, confluent: bool) -> None:
    task, meter, rows = plan.load_task(), Meter(), 0
    torch.set_num_threads(1)
    model = build_teacher(task).eval()
    mask = torch.ones(1, 1, dtype=torch.bool)
    messages, send, done = with_confluent(plan) if confluent else with_kafka_python(plan)
    for value in messages:
        meter.begin()
        segment = np.frombuffer(value, np.float32).reshape(1, 1, *task.segment_shape)
        prediction = model(torch.from_numpy(segment.copy()), mask)  # (1, 1, outputs)
        send(json.dumps({"values": prediction[0, 0].tolist()}).encode())
        done()
        rows += 1
        if rows == plan.rows:
            break
    meter.lap()
    meter.tell(rows)


if __name__ == "__main__":
    run(Plan.from_argv(), confluent="confluent" in sys.argv[2:])
