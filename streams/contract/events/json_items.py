"""What programs that are no devices write as JSON: which event, of which device, with which label,
and the message around it. Without Arrow, as devices read labels of others, too.

A message has one item or a list of at most MAX_ROWS. Its key is the device; without a key each item
has the field `device`. What has no number of its producer has that of its place in Kafka:

    epoch   kafka-<first 8 digits of the topic's ID, 0 without one>-<partition>
    number  offset x MAX_ROWS + index in the list

Labels from elsewhere, on the topic `labels`, are such items: from a device, a back office or
`tidewheel label import`. A label is of one event of the device, by `event_id`, by `epoch` and
`seq`, or of all with one event time. `known` or `known_us` is when it became known, by default when
it is read.
"""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Annotated, Any, Self, TypeVar

import msgspec
import numpy as np
from msgspec import Meta

from streams.contract.documents import END, LATEST_US, Document, EventTime, problem
from streams.contract.errors import MalformedRecord
from streams.contract.task import DEVICE_NAME, Task

MAX_ROWS = 100_000  # items of a message
PLACED = "kafka-"  # what epochs of places in Kafka begin with
LARGEST = float(np.finfo(np.float32).max)
BEGIN = datetime(1970, 1, 1, tzinfo=UTC)

Name = Annotated[str, Meta(pattern=f"^{DEVICE_NAME.pattern}{END}")]
Seq = Annotated[int, Meta(ge=0, lt=2**62)]
Text = Annotated[str, Meta(max_length=128, pattern=rf"^[^\x00-\x1f\x7f]+{END}")]
Time = Annotated[datetime, Meta(tz=True)]


class JsonItem(Document, forbid_unknown_fields=True):
    """One item; null is as good as absent. Read by `checked`, `label` is an array."""

    device: Name | None = None
    time: Time | None = None
    time_us: EventTime | None = None
    label: Any = None
    event_id: Text | None = None
    epoch: Name | None = None
    seq: Seq | None = None

    def checked(self, task: Task) -> Self:
        """Return the item with the values that its task says; raise ValueError that names a
        field."""
        return self._read(label=lambda value: truth_values(task, value))

    def _read(self, **kinds: Callable[[Any], np.ndarray]) -> Self:
        """Return the item with these fields read where they are given."""
        found = {}
        for name, read in kinds.items():
            if (value := getattr(self, name)) is not None:
                try:
                    found[name] = read(value)
                except ValueError as exc:
                    raise ValueError(f"{name}: {exc}") from exc
        return self.replace(**found) if found else self

    @property
    def at_us(self) -> int:
        return micros("time", self.time, self.time_us)


Item = TypeVar("Item", bound=JsonItem)


def micros(name: str, time: datetime | None, time_us: int | None) -> int:
    """Return a time that is given in one of two forms; raise ValueError if it is not."""
    if (time is None) == (time_us is None):
        raise ValueError(f"{name}: give either {name} or {name}_us")
    found = time_us if time is None else (time - BEGIN) // timedelta(microseconds=1)
    if found is None or not 0 <= found <= LATEST_US:
        raise ValueError(f"{name}: before 1970 or after 3100")
    return found


def placed_epoch(topic_id: str | None, partition: int) -> str:
    """Return the epoch of items that are counted by their place in this partition."""
    return f"{PLACED}{(topic_id or '0')[:8]}-{partition}"


def decode_items(
    kind: type[Item], task: Task, key: bytes | None, value: bytes | None
) -> list[tuple[str, Item]]:
    """Return the items of a message, each with its device; raise MalformedRecord."""
    data = value or b""
    many = data.lstrip()[:1] == b"["
    try:
        found = _decoder(kind, many).decode(data)
    except msgspec.ValidationError as exc:
        where, _, what = problem(exc).partition(": ")
        name = where.rpartition(".")[2]
        numeric = name in ("time", "known") and what.endswith(("`int`", "`float`"))
        advice = f": microseconds are {name}_us" if numeric else ""
        raise MalformedRecord("wrong-schema", f"{where}: {what}{advice}"[:300]) from exc
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        why = "the value is read as JSON, since no header says what it is"
        raise MalformedRecord("not-json", f"{why}: {exc}"[:300]) from exc
    placed = [
        (f"[{at}]." if many else "", item) for at, item in enumerate(found if many else [found])
    ]
    items = [(where, _checked(task, item, where)) for where, item in placed]
    keyed = key.decode("ascii", errors="replace") if key is not None else None
    if keyed and not DEVICE_NAME.fullmatch(keyed):
        raise MalformedRecord("wrong-key", f"key {key!r:.80} is not a device's name")
    return [(_device(where, item, keyed), item) for where, item in items]


@lru_cache
def _decoder(kind: type[JsonItem], many: bool) -> msgspec.json.Decoder[Any]:
    items = Annotated[list[kind], Meta(min_length=1, max_length=MAX_ROWS)]  # type: ignore[valid-type]
    return msgspec.json.Decoder(items if many else kind)


def _checked(task: Task, item: Item, where: str) -> Item:
    try:
        return item.checked(task)
    except ValueError as exc:
        raise MalformedRecord("wrong-schema", f"{where}{exc}"[:300]) from exc


def _device(where: str, item: JsonItem, keyed: str | None) -> str:
    device = keyed or item.device
    if device is None:
        key = "missing" if keyed is None else "empty"
        what = f"{where}device: missing; the message's key is {key}"
        raise MalformedRecord("wrong-schema", what)
    if item.device not in (None, device):
        raise MalformedRecord("wrong-key", f"key {device!r} and field device {item.device!r}")
    return device


def numbers(value: object, size: int) -> np.ndarray:
    """Return (size,) float32 of a list of so many numbers; raise ValueError if it is none."""
    if not isinstance(value, list) or len(value) != size:
        raise ValueError(f"not a list of {size} numbers")
    if not {type(number) for number in value} <= {int, float}:
        raise ValueError("an item is not a number")
    try:
        found = np.array(value, np.float64)
    except OverflowError:
        found = np.full(size, np.inf)
    if not (np.abs(found) <= LARGEST).all():
        raise ValueError("a number is not finite as float32")
    return found.astype(np.float32)


def truth_values(task: Task, value: object) -> np.ndarray:
    """Return a class as its index (1,), or the targets' values (targets,)."""
    if task.classes:
        if isinstance(value, str) and value in task.classes:
            return np.array([task.classes.index(value)], np.float32)
        if type(value) is int and 0 <= value < task.outputs:
            return np.array([value], np.float32)
        raise ValueError(f"not a class: {', '.join(task.classes)}, or 0 to {task.outputs - 1}")
    if isinstance(value, dict):
        if wrong := set(task.targets) ^ set(value):
            raise ValueError(f"the targets are {', '.join(task.targets)}, not so: {min(wrong)}")
        value = [value[name] for name in task.targets]
    elif len(task.targets) == 1 and not isinstance(value, list):
        value = [value]
    return numbers(value, len(task.targets))


EXTERNAL = "external"  # the source of such a label


class KnownLabel(JsonItem):
    """A label that became known."""

    known: Time | None = None
    known_us: EventTime | None = None

    def checked(self, task: Task) -> Self:
        if self.label is None:
            raise ValueError("label: missing")
        if (self.event_id is not None) + (self.seq is not None) + self.timed != 1:
            raise ValueError("event_id: give one of event_id, seq, and time or time_us")
        if (self.epoch is None) != (self.seq is None):
            raise ValueError("seq: give both epoch and seq, or neither")
        if self.timed:
            micros("time", self.time, self.time_us)
        self.told_us(0)
        return super().checked(task)

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
