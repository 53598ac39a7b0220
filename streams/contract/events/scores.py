"""The scored events on `scores`: columns, bytes, and the way back.

    scores/1      an Arrow IPC stream of one batch
    scores/json   a list of objects with the same fields; times are RFC 3339

A worker writes one of them, as it is set; the header `schema` says which. Both have the scored
events of one window and revision, as the store has them. The header `taught` has the teacher's
outputs of the same events for the device, see compact.py.
"""

import json
from collections.abc import Iterable
from datetime import datetime
from typing import Literal

import numpy as np
import pyarrow as pa

from streams.contract.documents import encoded
from streams.contract.errors import MalformedRecord
from streams.contract.events.batches import TIMESTAMP, decode_batch, encode_batch, fields_of

ScoresForm = Literal["arrow", "json"]
SCORES_1, SCORES_JSON = "scores/1", "scores/json"
SCHEMA_OF: dict[ScoresForm, str] = {"arrow": SCORES_1, "json": SCORES_JSON}
TIMES, FLOATS = ("time", "window"), ("outputs", "teacher", "label")


def score_schema() -> pa.Schema:
    """Return the columns of a scored event, on `scores` and in the store.

    `window` is the window's start; `revision` counts the window's reports; `commit` numbers the
    store's commits for the event's Kafka partition. If the task uploads predictions only, nothing
    is scored: `teacher` is empty, `teacher_model` is "" and `agrees` is null.
    """
    floats = pa.list_(pa.float32())
    kinds = {
        "device": pa.string(), "epoch": pa.string(), "seq": pa.int64(), "event_id": pa.string(),
        "time": TIMESTAMP, "window": TIMESTAMP, "revision": pa.int32(), "model": pa.string(),
        "outputs": floats, "teacher_model": pa.string(), "teacher": floats, "label": floats,
        "agrees": pa.bool_(), "correct": pa.bool_(), "partition": pa.int32(), "commit": pa.int64(),
    }  # fmt: skip
    return fields_of(kinds, optional=("event_id", "label", "agrees", "correct"))


def encode_scores(rows: pa.RecordBatch, form: ScoresForm, head: pa.Buffer | None = None) -> bytes:
    """Return the value of a message with these rows; head: see encode_batch."""
    if form == "arrow":
        return encode_batch(rows, head)
    columns = {name: rows.column(name).to_pylist() for name in rows.schema.names}
    for name in FLOATS:  # as few digits as say which float32 it is
        columns[name] = [None if row is None else _short(row) for row in columns[name]]
    named = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return encoded(named)


def _short(row: list[float]) -> list[float]:
    return [float(text) for text in np.array(row, np.float32).astype(str).tolist()]


def decode_scores(value: bytes | None, headers: Iterable[tuple[str, bytes]]) -> pa.RecordBatch:
    """Return the rows of a message of `scores`; raise MalformedRecord."""
    if dict(headers).get("schema") != SCORES_JSON.encode():
        return decode_batch(value or b"", score_schema())
    try:
        rows = json.loads(value or b"")
        for row in rows:
            row.update({name: datetime.fromisoformat(row[name]) for name in TIMES})
        found = pa.RecordBatch.from_pylist(rows, score_schema())
        found.validate(full=True)
    except (pa.ArrowException, ValueError, TypeError, LookupError, AttributeError) as exc:
        raise MalformedRecord("not-json", f"{type(exc).__name__}: {exc}"[:200]) from exc
    return found
