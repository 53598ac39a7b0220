"""A Kafka topic as output: a message a row, at least once under keys that stay the same.

The key is `<job>/<shard>/<number in the shard>`, so a compacted topic, or a reader that keeps the
last message of each key, has every row once. The value is the row as JSON.
"""

import json
import threading
from pathlib import Path

import pyarrow as pa

from streams.batch.sinks.loading import batches_of
from streams.batch.sinks.part_files import plain
from streams.contract.errors import Retryable
from streams.kafka.settings import BrokerSettings

IN_FLIGHT = 1000
ANSWER_S = 60.0  # within which the broker must acknowledge


class KafkaSink:
    """A topic that exists."""

    def __init__(self, settings: BrokerSettings, topic: str, job: str) -> None:
        self._settings, self._topic, self._job = settings, topic, job

    def check(self, schema: pa.Schema) -> None:  # noqa: ARG002
        from streams.kafka.admin import require_topic

        require_topic(self._settings, self._topic)

    def prepare(self, schema: pa.Schema) -> None:
        """Nothing: the topic exists."""

    def committed(self, shard: int, generation: int) -> bool:  # noqa: ARG002
        """Return False: a topic cannot be asked."""
        return False

    def load(self, shard: int, generation: int, part: Path) -> None:  # noqa: ARG002
        from streams.kafka.producer import Producer

        producer, sent = Producer(self._settings), _Acknowledged()
        try:
            number = 0
            for batch in batches_of(part, self._job, shard, lambda kind: kind):
                for row in batch.to_pylist():
                    value = json.dumps(plain(row), ensure_ascii=False, separators=(",", ":"))
                    key = f"{self._job}/{shard}/{number}".encode()
                    sent.wait(IN_FLIGHT)
                    sent.add()
                    producer.send(self._topic, key, value.encode(), [], sent.done)
                    number += 1
            sent.wait(1)
        finally:
            producer.close()

    def count(self) -> int | None:
        return None


class _Acknowledged:
    """Messages that the broker has not acknowledged."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._pending = 0
        self._error: Exception | None = None

    def add(self) -> None:
        with self._condition:
            self._pending += 1

    def done(self, error: Exception | None) -> None:
        with self._condition:
            self._pending -= 1
            self._error = self._error or error
            self._condition.notify()

    def wait(self, fewer_than: int) -> None:
        """Wait until there are fewer; raise what the broker has answered, or Retryable."""
        with self._condition:
            there = self._condition.wait_for(
                lambda: self._pending < fewer_than or self._error is not None, ANSWER_S
            )
            if self._error is not None:
                raise self._error
            if not there:
                raise Retryable(f"the broker acknowledges nothing within {ANSWER_S:.0f} s")
