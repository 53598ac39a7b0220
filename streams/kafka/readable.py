"""Messages of a task's topics as plain values, for people and for pipes.

Whatever is on a topic, something is returned: a message that cannot be decoded says why.
"""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
from msgspec import NODEFAULT, structs

from streams.contract.decisions import Release
from streams.contract.documents import DeviceState, Document, RoundEvent
from streams.contract.errors import MalformedRecord
from streams.contract.events.json_form import decode_json, is_json
from streams.contract.events.json_items import PLACED, decode_known_labels
from streams.contract.events.labels import LabelBatch
from streams.contract.events.messages import Drop, sampled_parent
from streams.contract.events.records import decode_event_message, decode_scores
from streams.contract.task import Task
from streams.contract.topics import (
    ARTIFACTS,
    DEAD_LETTERS,
    EVENTS,
    FLEET,
    LABELS,
    RELEASES,
    ROUNDS,
    SCORES,
    WINDOWS,
)
from streams.contract.window_report import WindowReport
from streams.kafka.reader import Received

Row = dict[str, Any]

TOPICS = (EVENTS, LABELS, SCORES, WINDOWS, FLEET, ROUNDS, RELEASES, ARTIFACTS, DEAD_LETTERS)


def rows_of(task: Task, topic: str, message: Received) -> list[Row]:
    """Return the rows of a message of `topic` (one of TOPICS), each with `at`, the time at which
    the broker has it, and `trace`, the id of its trace if it has one; a row with `unreadable` where
    it cannot be decoded."""
    at = datetime.fromtimestamp(message.time_ms / 1000, UTC).isoformat(timespec="milliseconds")
    traced = sampled_parent(message.headers)
    about = {"at": at, "trace": traced.split("-")[1]} if traced else {"at": at}
    try:
        return [{**about, **row} for row in _DECODE[topic](task, message)]
    except (MalformedRecord, pa.ArrowException, ValueError, TypeError) as exc:
        why = str(exc).splitlines()[0] if str(exc) else type(exc).__name__
        key = (message.key or b"").decode(errors="replace")
        size = len(message.value or b"")
        return [{"at": at, "key": key, "bytes": size, "unreadable": why}]


def _events(task: Task, message: Received) -> list[Row]:
    key, value, headers = message.key, message.value, message.headers
    if is_json(dict(headers)):
        epoch = f"{PLACED}*-{message.partition}"
        batches = decode_json(task, key, value, epoch, message.offset)
        return [
            {"device": one.device, "epoch": one.epoch, **row}
            for one in batches
            for row in one.rows.to_pylist()
        ]
    found = decode_event_message(task, key, value, headers)
    if isinstance(found, Drop):
        return [{"dropped": vars(found)}]
    about = {"device": found.device, "epoch": found.epoch}
    if isinstance(found, LabelBatch):
        about["labels"] = f"{found.first} to {found.last}"
    return [{**about, **row} for row in found.rows.to_pylist()]


def _labels(task: Task, message: Received) -> list[Row]:
    found = decode_known_labels(task, message.key, message.value)
    fields = [
        {n: v for n, v in label.replace(device=None, label=None).fields().items() if v is not None}
        for _, label in found
    ]
    return [
        {"device": device, **about, "label": np.asarray(label.label).tolist()}
        for (device, label), about in zip(found, fields, strict=True)
    ]


def _scores(_task: Task, message: Received) -> list[Row]:
    found: list[Row] = decode_scores(message.value, message.headers).to_pylist()
    return found


def _document(kind: type[Document]) -> Callable[[Task, Received], list[Row]]:
    def decode(task: Task, message: Received) -> list[Row]:
        if message.value is None:  # it deletes those before it
            return _opaque(task, message)
        return [_said(kind.decode(message.value))]

    return decode


def _release(_task: Task, message: Received) -> list[Row]:
    decision = Release.decode(message.value or b"").decision
    key = (message.key or b"").decode(errors="replace")
    return [{"under": key, **_said(decision)}]


def _said(value: Any) -> Any:
    """Return plain values, of documents the fields that differ from their defaults."""
    if isinstance(value, Document):
        fields = ((each, getattr(value, each.name)) for each in structs.fields(value))
        return {each.name: _said(found) for each, found in fields if found != _usual(each)}
    if isinstance(value, dict):
        return {name: _said(found) for name, found in value.items()}
    return [_said(found) for found in value] if isinstance(value, list) else value


def _usual(field: structs.FieldInfo) -> Any:
    factory: Any = field.default_factory
    return field.default if factory is NODEFAULT else factory()


def _headers(message: Received) -> dict[str, str]:
    return {name: bytes(value or b"").decode(errors="replace") for name, value in message.headers}


def _opaque(_task: Task, message: Received) -> list[Row]:
    key = (message.key or b"").decode(errors="replace")
    return [{"key": key, "bytes": len(message.value or b""), **_headers(message)}]


_DECODE: dict[str, Callable[[Task, Received], list[Row]]] = {
    EVENTS: _events,
    LABELS: _labels,
    SCORES: _scores,
    WINDOWS: _document(WindowReport),
    FLEET: _document(DeviceState),
    ROUNDS: _document(RoundEvent),
    RELEASES: _release,
    ARTIFACTS: _opaque,
    DEAD_LETTERS: _opaque,
}
