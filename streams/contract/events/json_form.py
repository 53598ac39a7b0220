"""Events as JSON, from any producer: the messages of `events` that have neither of the headers
`schema` and `e2`. `event_json_schema` is what one may contain.

An event is counted once by (device, epoch, seq). A producer that numbers its events gives `epoch`
and `seq`, and its repeats are recognized. All others have those of their place in Kafka
(json_items.py): a message that a worker reads again has the same ones, one that a producer sends
again is another. Without a key each partition closes windows of a device apart from the others.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Self

import msgspec
import numpy as np
from msgspec import Meta

from streams.contract.documents import END
from streams.contract.errors import MalformedRecord
from streams.contract.events.batches import EventColumns
from streams.contract.events.compact import UNANSWERED
from streams.contract.events.json_items import (
    LARGEST,
    MAX_ROWS,
    PLACED,
    JsonItem,
    decode_items,
    micros,
    numbers,
    truth_values,
)
from streams.contract.events.messages import EVENTS_2, event_columns, task_layout
from streams.contract.task import Category, Task, Time

MODEL = "external"  # what has answered where the producer names no model
LEFT_OUT = object()
CERTAIN = 20.0  # the output of a class that is answered without a score; that of the others is 0

ModelName = Annotated[str, Meta(pattern=f"^[A-Za-z0-9][A-Za-z0-9._-]{{0,63}}{END}")]


class JsonEvent(JsonItem):
    """One event."""

    segment: Any = None
    outputs: Any = None
    answer: Any = None
    model: ModelName | None = None

    def checked(self, task: Task) -> Self:
        micros("time", self.time, self.time_us)
        given = (self.outputs is not None) + (self.answer is not None)
        if given == 2 or (not given and task.answer_by == "device"):
            raise ValueError("answer: give either outputs or answer")
        if not given and self.model is not None:
            raise ValueError("model: give it with its answer")
        if (self.segment is None) == (task.upload == "segment"):
            wanted = "the readings are missing" if self.segment is None else "no readings are sent"
            raise ValueError(f"segment: {wanted} with upload={task.upload!r}")
        if (self.epoch is None) != (self.seq is None):
            raise ValueError("seq: give both epoch and seq, or neither")
        if self.epoch is not None and self.epoch.startswith(PLACED):
            raise ValueError(f"epoch: {PLACED} is reserved")
        return self._read(
            label=lambda value: truth_values(task, value),
            segment=lambda value: _segment(task, value),
            outputs=lambda value: numbers(value, task.outputs),
            answer=lambda value: truth_values(task, value),
        )

    def answered(self, task: Task) -> np.ndarray:
        """Return the outputs (outputs,)."""
        if self.outputs is not None:
            return np.asarray(self.outputs)
        if self.answer is None:
            return np.zeros(task.outputs, np.float32)
        if not task.classes:
            return np.asarray(self.answer)
        found = np.zeros(task.outputs, np.float32)
        found[int(self.answer[0])] = CERTAIN
        return found

    @property
    def by(self) -> str:
        """What has answered."""
        unanswered = self.outputs is None and self.answer is None
        return UNANSWERED if unanswered else self.model or MODEL


def is_json(headers: Mapping[str, bytes]) -> bool:
    """Return whether a message with these headers has events as JSON."""
    return "schema" not in headers and EVENTS_2 not in headers


def decode_json(
    task: Task, key: bytes | None, value: bytes | None, epoch: str, offset: int
) -> list[EventColumns]:
    """Return the events of a message; raise MalformedRecord. epoch: `placed_epoch` of its
    partition."""
    found = decode_items(JsonEvent, task, key, value)
    events = [event for _, event in found]
    named = [
        (*_named(at, *each, key, epoch, offset), each[1].by != UNANSWERED)
        for at, each in enumerate(found)
    ]
    return [
        _columns(task, *named[begin][:3], events[begin:end]) for begin, end in _runs(named)
    ]  # fmt: skip


def _named(
    at: int, device: str, event: JsonEvent, key: bytes | None, epoch: str, offset: int
) -> tuple[str, str, int]:
    """Return device, epoch and seq of the event at this index."""
    if event.epoch is None or event.seq is None:
        return device, epoch, offset * MAX_ROWS + at
    if not key:
        why = "without a key a repeat may go to another partition, where it is not recognized"
        raise MalformedRecord("wrong-schema", f"[{at}].seq: {why}")
    return device, event.epoch, event.seq


def _runs(named: Sequence[tuple[str, str, int, bool]]) -> Iterator[tuple[int, int]]:
    """Yield from where to before where the events are consecutive ones of a device and epoch, and
    all or none are answered."""
    begin = 0
    for at in range(1, len(named) + 1):
        device, epoch, seq, answered = named[at - 1]
        if at == len(named) or named[at] != (device, epoch, seq + 1, answered):
            yield begin, at
            begin = at


def _columns(
    task: Task, device: str, epoch: str, first: int, events: Sequence[JsonEvent]
) -> EventColumns:
    models = [event.by for event in events]
    columns = event_columns(
        task,
        first=first,
        times=np.array([event.at_us for event in events], np.int64),
        model=models[0] if len(set(models)) == 1 else models,
        outputs=np.stack([event.answered(task) for event in events]),
        labels=[event.label for event in events],
        segments=np.stack([_timed(task, event) for event in events])
        if task.upload == "segment"
        else None,
    )
    ids = [event.event_id for event in events]
    return EventColumns(device, epoch, task_layout(task), columns, ids if any(ids) else None)


def _segment(task: Task, value: object) -> np.ndarray:
    """Return (channels, samples)."""
    channels, samples = task.channels, task.segment.samples
    if isinstance(value, dict):
        if wrong := (set(channels) ^ set(value)) - _of_the_time(task):
            raise ValueError(f"the channels are {', '.join(channels)}, not so: {min(wrong)}")
        value = [value.get(name, LEFT_OUT) for name in channels]
    if not isinstance(value, list) or len(value) != len(channels):
        raise ValueError(f"not a list of {len(channels)} channels, nor an object with them")
    return np.stack([_channel(*pair, samples) for pair in zip(channels, value, strict=True)])


def _of_the_time(task: Task) -> set[str]:
    """Return the channels that an event may leave out: they follow from its time."""
    if task.segment.samples > 1:
        return set()
    return {name for name in task.channels if isinstance(name, Time) and name != "since"}


def _timed(task: Task, event: JsonEvent) -> np.ndarray:
    """Return the segment with the channels that were left out."""
    segment = np.asarray(event.segment)
    for i, channel in enumerate(task.channels):
        if isinstance(channel, Time) and np.isnan(segment[i]).any():
            segment[i] = channel.of(event.at_us, None)
    return segment


def _channel(name: str, value: object, samples: int) -> np.ndarray:
    if value is LEFT_OUT:
        return np.full(samples, np.nan, np.float32)
    if samples == 1 and not isinstance(value, list):
        value = [value]
    try:
        if isinstance(name, Category) and isinstance(value, list):
            value = [
                each if each is True or each is False else float(name.index_of(each))
                for each in value
            ]
        return numbers(value, samples)
    except ValueError as exc:
        raise ValueError(f"channel {name}: {exc}") from exc


# --- the JSON Schema ------------------------------------------------------------------------------


def event_json_schema(task: Task) -> dict[str, object]:
    """Return the JSON Schema (draft 2020-12) of a message of events of this task."""
    number: dict[str, object] = {"type": "number", "minimum": -LARGEST, "maximum": LARGEST}
    fields_of = {
        name: _channel_schema(name, number, task.segment.samples) for name in task.channels
    }
    size = {"minItems": len(task.channels), "items": False}
    listed = {"type": "array", "prefixItems": list(fields_of.values()), **size}
    named = _object(task.channels, number) | {"properties": fields_of}
    named["required"] = [name for name in task.channels if name not in _of_the_time(task)]
    segment: list[object] = [listed, named]
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
    answers: list[object] = [_given("outputs"), _given("answer")]
    if task.answer_by == "worker":
        answers.append({"not": {"anyOf": [*answers, _given("model")]}})
    rules: list[object] = [
        {"oneOf": [_given("time"), _given("time_us")]},
        {"oneOf": answers},
        {"anyOf": [{"allOf": numbered}, {"not": {"anyOf": numbered}}]},
        {"properties": {"epoch": {"not": {"type": "string", "pattern": f"^{PLACED}"}}}},
    ]
    event = msgspec.json.schema(JsonEvent)["$defs"]["JsonEvent"]
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


def _channel_schema(name: str, number: dict[str, object], samples: int) -> dict[str, object]:
    one: dict[str, object] = number
    if isinstance(name, Category):
        one = {"type": ["string", "number", "null"]}
    many = _list(one, samples)
    return {"anyOf": [one, many]} if samples == 1 else many


def _list(item: object, size: int) -> dict[str, object]:
    return {"type": "array", "items": item, "minItems": size, "maxItems": size}


def _object(names: Sequence[str], item: object) -> dict[str, object]:
    fields = dict.fromkeys(names, item)
    named = {"properties": fields, "required": list(names), "additionalProperties": False}
    return {"type": "object", **named}


def _given(name: str) -> dict[str, object]:
    return {"required": [name], "properties": {name: {"not": {"type": "null"}}}}
