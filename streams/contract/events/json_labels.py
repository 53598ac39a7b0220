"""Labels from elsewhere, on the topic `labels`: JSON as json_items.py says, from a device, a back
office or `tidewheel label import`.

A label is of one event of the device, by `event_id`, by `epoch` and `seq`, or of all with one event
time. `known` or `known_us` is when it became known, by default when it is read.
"""

from typing import Self

from pydantic import AwareDatetime, model_validator

from streams.contract.documents import EventTime
from streams.contract.events.json_items import JsonItem, decode_items, micros
from streams.contract.task import Task

EXTERNAL = "external"  # the source of such a label


class KnownLabel(JsonItem):
    """A label that became known."""

    known: AwareDatetime | None = None
    known_us: EventTime | None = None

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.label is None:
            raise ValueError("label: missing")
        if (self.event_id is not None) + (self.seq is not None) + self.timed != 1:
            raise ValueError("event_id: give one of event_id, seq, and time or time_us")
        if (self.epoch is None) != (self.seq is None):
            raise ValueError("seq: give both epoch and seq, or neither")
        if self.timed:
            micros("time", self.time, self.time_us)
        self.told_us(0)
        return self

    @property
    def timed(self) -> bool:
        """Whether the event is named by its time."""
        return self.time is not None or self.time_us is not None

    def told_us(self, now_us: int) -> int:
        """Return when it became known."""
        given = self.known is not None or self.known_us is not None
        return micros("known", self.known, self.known_us) if given else now_us


def decode_known_labels(
    task: Task, key: bytes | None, value: bytes | None
) -> list[tuple[str, KnownLabel]]:
    """Return the labels of a message, each with its device; raise MalformedRecord."""
    return decode_items(KnownLabel, task, key, value)
