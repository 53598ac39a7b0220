"""The seam to Kafka: the messages of a partition between two offsets, which are still there.

A reader that seeks an offset which retention has passed is put to the topic's beginning without a
word, so the beginning is asked before a range is read, and its messages are hashed.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from streams.batch.records.documents import Named, PlannedFile, Shard
from streams.batch.sources.plan import Sources
from streams.contract.errors import TidewheelError, UsageError
from streams.kafka.settings import BrokerSettings

if TYPE_CHECKING:
    from streams.kafka.reader import Reader, Received

PLACE = "kafka:"  # before topic and partition, in the path of a planned file

Broker = Callable[[], BrokerSettings]


def place_of(file: Named | PlannedFile) -> tuple[str, int]:
    """Return topic and partition of an input."""
    topic, _, partition = file.path.removeprefix(PLACE).rpartition("/")
    return topic, int(partition)


def named_partition(topic: str, partition: int) -> Named:
    return Named(name=f"{topic}/{partition}", path=f"{PLACE}{topic}/{partition}")


@contextmanager
def reading(broker: Broker | None, topic: str) -> "Iterator[Reader]":
    """Open a reader of a topic; raise UsageError without a broker, BrokerUnavailable if none
    answers or it has no such topic."""
    from streams.kafka.reader import Reader

    if broker is None:
        raise UsageError("--input-topic needs a broker: name it with --kafka")
    reader = Reader(broker(), [topic])
    try:
        yield reader
    finally:
        reader.close()


def frozen(broker: Broker, topic: str) -> dict[int, tuple[int, int]]:
    """Return the first and the end offset of each partition as they are now."""
    with reading(broker, topic) as reader:
        return {partition: bounds for (_, partition), bounds in sorted(reader.bounds().items())}


def messages(
    reader: "Reader", topic: str, partition: int, start: int, stop: int
) -> "Iterator[Received]":
    """Yield the messages from offset `start` to before `stop`; raise TidewheelError, by name, if
    some of them are gone."""
    refuse_gone(topic, partition, start, stop, reader.bounds()[topic, partition])
    yield from reader.between(topic, partition, start, stop)


def refuse_gone(topic: str, partition: int, start: int, stop: int, now: tuple[int, int]) -> None:
    """Raise TidewheelError if a partition that has the offsets `now` lacks some of a range."""
    begin, end = now
    if begin > start and stop > start:
        raise TidewheelError(
            f"{topic} partition {partition} begins with offset {begin} now, this job needs "
            f"{start} to {stop - 1}: retention has passed over them; score what is left as "
            "another job"
        )
    if end < stop:
        raise TidewheelError(
            f"{topic} partition {partition} ends with offset {end} now, this job needs "
            f"{start} to {stop - 1}: the topic is another one"
        )


@dataclass
class TopicSources(Sources):
    """Partitions as input: messages do not change, but retention removes them."""

    broker: Broker | None = None
    missing: Sequence[Shard] = field(default_factory=list)

    def verify(self, indexes: set[int], check: Callable[[], None]) -> None:
        """Raise UsageError if messages of the shards that are missing are gone."""
        for index in sorted(indexes):
            check()
            topic, partition = place_of(self.plan.files[index])
            with reading(self.broker, topic) as reader:
                now = reader.bounds().get((topic, partition), (0, 0))
            for shard in self.missing:
                if shard.file == index:
                    try:
                        refuse_gone(topic, partition, shard.start, shard.stop, now)
                    except TidewheelError as exc:
                        raise UsageError(str(exc)) from exc

    def check(self, index: int) -> None:
        """Nothing: the messages of a shard are compared with the plan as they are read."""
