"""Events as JSON, from any producer: one event or a list of events in a message of `events` that
has neither of the headers `schema` and `e2`. `event_json_schema` is what it may contain.

The key is the device. Without a key each event has the field `device`; its windows are then closed
in each partition by itself.

An event is counted once by (device, epoch, seq). A producer that numbers its events gives `epoch`
and `seq`, and its repeats are recognized. All others have those of their place in Kafka:

    epoch   kafka-<first 8 digits of the topic's ID, 0 without one>-<partition>
    seq     offset x MAX_ROWS + index in the list

A message that a worker reads again has the same ones; one that a producer sends again is another.
"""

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated, Self, cast

import numpy as np
from pydantic import (
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from streams.contract.documents import LATEST_US, EventTime
from streams.contract.errors import MalformedRecord
from streams.contract.events.batches import EventColumns
from streams.contract.events.messages import EVENTS_2, event_columns, task_layout
from streams.contract.task import DEVICE_NAME, Task

MAX_ROWS = 100_000  # events of a message
PLACED = "kafka-"  # what epochs of places in Kafka begin with; no other may
MODEL = "external"  # what has answered where the producer names no model
CERTAIN = 20.0  # the output of a class that is answered without a score; that of the others is 0
LARGEST = float(np.finfo(np.float32).max)
BEGIN = datetime(1970, 1, 1, tzinfo=UTC)

Name = Annotated[str, Field(pattern=f"^{DEVICE_NAME.pattern}$")]
ModelName = Annotated[str, Field(pattern="^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
Seq = Annotated[int, Field(ge=0, lt=2**62)]
Text = Annotated[str, Field(max_length=128, pattern=r"^[^\x00-\x1f\x7f]+$")]
Values = Annotated[np.ndarray | None, WithJsonSchema({})]


class JsonEvent(BaseModel):
    """One event; null is as good as absent. It is validated with its task as the context."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, arbitrary_types_allowed=True, title="Event"
    )

    device: Name | None = None
    time: AwareDatetime | None = None
    time_us: EventTime | None = None
    segment: Values = None
    outputs: Values = None
    answer: Values = None
    label: Values = None
    model: ModelName | None = None
    event_id: Text | None = None
    epoch: Name | None = None
    seq: Seq | None = None

    @field_validator("segment", "outputs", "answer", "label", mode="plain")
    @classmethod
    def _read(cls, value: object, info: ValidationInfo) -> Values:
        task = cast(Task, info.context)
        if value is None:
            return None
        if info.field_name == "segment":
            return _segment(task, value)
        if info.field_name == "outputs":
            return _numbers(value, task.outputs)
        return _truth(task, value)

    @model_validator(mode="after")
    def _whole(self, info: ValidationInfo) -> Self:
        task = cast(Task, info.context)
        if (self.time is None) == (self.time_us is None):
            raise ValueError("time: give either time or time_us")
        if not 0 <= self.at_us <= LATEST_US:
            raise ValueError("time: before 1970 or after 3100")
        if (self.outputs is None) == (self.answer is None):
            raise ValueError("answer: give either outputs or answer")
        if (self.segment is None) == (task.upload == "segment"):
            wanted = "the readings are missing" if self.segment is None else "no readings are sent"
            raise ValueError(f"segment: {wanted} with upload={task.upload!r}")
        if (self.epoch is None) != (self.seq is None):
            raise ValueError("seq: give both epoch and seq, or neither")
        if self.epoch is not None and self.epoch.startswith(PLACED):
            raise ValueError(f"epoch: {PLACED} is reserved")
        return self

    @property
    def at_us(self) -> int:
        if self.time is None:
            return self.time_us or 0
        return (self.time - BEGIN) // timedelta(microseconds=1)

    def answered(self, task: Task) -> np.ndarray:
        """Return the outputs (outputs,)."""
        if self.outputs is not None or self.answer is None:
            return np.asarray(self.outputs)
        if not task.classes:
            return self.answer
        found = np.zeros(task.outputs, np.float32)
        found[int(self.answer[0])] = CERTAIN
        return found


ONE = TypeAdapter(JsonEvent)
MANY = TypeAdapter(Annotated[list[JsonEvent], Field(min_length=1, max_length=MAX_ROWS)])


def is_json(headers: Mapping[str, bytes]) -> bool:
    """Return whether a message with these headers has events as JSON."""
    return "schema" not in headers and EVENTS_2 not in headers


def placed_epoch(topic_id: str | None, partition: int) -> str:
    """Return the epoch of events that are counted by their place in this partition."""
    return f"{PLACED}{(topic_id or '0')[:8]}-{partition}"


def decode_json(
    task: Task, key: bytes | None, value: bytes | None, epoch: str, offset: int
) -> list[EventColumns]:
    """Return the events of a message; raise MalformedRecord. epoch: `placed_epoch` of its
    partition."""
    data = value or b""
    form = MANY if data.lstrip()[:1] == b"[" else ONE
    try:
        found = form.validate_json(data, context=task)
    except ValidationError as exc:
        raise _refusal(exc) from exc
    events = [found] if isinstance(found, JsonEvent) else found
    keyed = key.decode("ascii", errors="replace") if key else None
    if keyed is not None and not DEVICE_NAME.fullmatch(keyed):
        raise MalformedRecord("wrong-key", f"key {key!r:.80} is not a device's name")
    named = [_named(at, event, keyed, epoch, offset) for at, event in enumerate(events)]
    return [
        _columns(task, *named[begin], events[begin:end]) for begin, end in _runs(named)
    ]  # fmt: skip


def _named(
    at: int, event: JsonEvent, keyed: str | None, epoch: str, offset: int
) -> tuple[str, str, int]:
    """Return device, epoch and seq of the event at this index."""
    device = keyed or event.device
    if device is None:
        raise MalformedRecord("wrong-schema", f"[{at}].device: missing, as is the message's key")
    if event.device not in (None, device):
        raise MalformedRecord("wrong-key", f"key {device!r} and field device {event.device!r}")
    if event.epoch is None or event.seq is None:
        return device, epoch, offset * MAX_ROWS + at
    if keyed is None:
        why = "without a key a repeat may go to another partition, where it is not recognized"
        raise MalformedRecord("wrong-schema", f"[{at}].seq: {why}")
    return device, event.epoch, event.seq


def _runs(named: Sequence[tuple[str, str, int]]) -> Iterator[tuple[int, int]]:
    """Yield from where to before where the events are consecutive ones of a device and epoch."""
    begin = 0
    for at in range(1, len(named) + 1):
        device, epoch, seq = named[at - 1]
        if at == len(named) or named[at] != (device, epoch, seq + 1):
            yield begin, at
            begin = at


def _columns(
    task: Task, device: str, epoch: str, first: int, events: Sequence[JsonEvent]
) -> EventColumns:
    models = [event.model or MODEL for event in events]
    columns = event_columns(
        task,
        first=first,
        times=np.array([event.at_us for event in events], np.int64),
        model=models[0] if len(set(models)) == 1 else models,
        outputs=np.stack([event.answered(task) for event in events]),
        labels=[event.label for event in events],
        segments=np.stack([np.asarray(event.segment) for event in events])
        if task.upload == "segment"
        else None,
    )
    ids = [event.event_id for event in events]
    return EventColumns(device, epoch, task_layout(task), columns, ids if any(ids) else None)


def _refusal(exc: ValidationError) -> MalformedRecord:
    first = exc.errors(include_url=False, include_context=False)[0]
    said = first["msg"].removeprefix("Value error, ")
    if first["type"] == "json_invalid":
        why = "without a header schema or e2 the value is JSON"
        return MalformedRecord("not-json", f"{why}: {said}"[:300])
    where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"])
    detail = f"{where}: {said}" if where else said
    return MalformedRecord("wrong-schema", detail.lstrip(".")[:300])


# --- values ---------------------------------------------------------------------------------------


def _numbers(value: object, size: int) -> np.ndarray:
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


def _segment(task: Task, value: object) -> np.ndarray:
    """Return (channels, samples)."""
    channels, samples = task.channels, task.segment.samples
    if isinstance(value, dict):
        if wrong := set(channels) ^ set(value):
            raise ValueError(f"the channels are {', '.join(channels)}, not so: {min(wrong)}")
        value = [value[name] for name in channels]
    if not isinstance(value, list) or len(value) != len(channels):
        raise ValueError(f"not a list of {len(channels)} channels, nor an object with them")
    return np.stack([_channel(*pair, samples) for pair in zip(channels, value, strict=True)])


def _channel(name: str, value: object, samples: int) -> np.ndarray:
    try:
        return _numbers([value] if samples == 1 and not isinstance(value, list) else value, samples)
    except ValueError as exc:
        raise ValueError(f"channel {name}: {exc}") from exc


def _truth(task: Task, value: object) -> np.ndarray:
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
    return _numbers(value, len(task.targets))


# --- the JSON Schema ------------------------------------------------------------------------------


def event_json_schema(task: Task) -> dict[str, object]:
    """Return the JSON Schema (draft 2020-12) of a message of events of this task."""
    number = {"type": "number", "minimum": -LARGEST, "maximum": LARGEST}
    channel = _list(number, task.segment.samples)
    if task.segment.samples == 1:
        channel = {"anyOf": [number, channel]}
    segment: list[object] = [_list(channel, len(task.channels)), _object(task.channels, channel)]
    if task.classes:
        index = {"type": "integer", "minimum": 0, "maximum": task.outputs - 1}
        truth: list[object] = [{"enum": list(task.classes)}, index]
    else:
        truth = [_list(number, len(task.targets)), _object(task.targets, number)]
        truth += [number] if len(task.targets) == 1 else []
    sent = task.upload == "segment"
    own: dict[str, list[object]] = {
        "segment": segment if sent else [],
        "outputs": [_list(number, task.outputs)],
        "answer": truth,
        "label": truth,
    }
    fields = {name: {"anyOf": [*forms, {"type": "null"}]} for name, forms in own.items()}
    numbered = [_given("epoch"), _given("seq")]
    rules: list[object] = [
        {"oneOf": [_given("time"), _given("time_us")]},
        {"oneOf": [_given("outputs"), _given("answer")]},
        {"anyOf": [{"allOf": numbered}, {"not": {"anyOf": numbered}}]},
        {"properties": {"epoch": {"not": {"type": "string", "pattern": f"^{PLACED}"}}}},
    ]
    event = JsonEvent.model_json_schema()
    event["properties"] |= fields
    event["allOf"] = [*rules, _given("segment")] if sent else rules
    one = {"$ref": "#/$defs/event"}
    many = {"type": "array", "items": one, "minItems": 1, "maxItems": MAX_ROWS}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"A message of events of {task.id}",
        "anyOf": [one, many],
        "$defs": {"event": event},
    }


def _list(item: object, size: int) -> dict[str, object]:
    return {"type": "array", "items": item, "minItems": size, "maxItems": size}


def _object(names: Sequence[str], item: object) -> dict[str, object]:
    fields = dict.fromkeys(names, item)
    named = {"properties": fields, "required": list(names), "additionalProperties": False}
    return {"type": "object", **named}


def _given(name: str) -> dict[str, object]:
    return {"required": [name], "properties": {name: {"not": {"type": "null"}}}}
