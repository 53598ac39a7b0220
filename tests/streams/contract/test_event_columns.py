"""Events as columns are the rows of an EventBatch, whole and in part."""

import dataclasses

import pyarrow as pa
import pytest

from streams.contract.events.event_columns import EventColumns
from streams.contract.events.records import (
    EventBatch,
    as_columns,
    decode_columns,
    decode_event_message,
    encode_events,
    encode_stream,
)
from streams.contract.task import Task
from tests.rig.made_up.tiny_task import task as tiny
from tests.rig.processes.workers import batch

TASKS = {
    "segments": tiny,
    "half": dataclasses.replace(tiny, upload_dtype="float16"),
    "predictions": dataclasses.replace(tiny, upload="prediction"),
    "targets": dataclasses.replace(tiny, classes=(), targets=("left", "right")),
}


def events(task: Task) -> EventBatch:
    return batch("d0", 7, [1.0, 2.0, 31.0, 32.0, 3.0], task=task)


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_columns_have_the_rows_of_their_batch(task: Task) -> None:
    whole = events(task)
    columns = as_columns(whole)
    assert (columns.first, columns.last, columns.count) == (7, 11, 5)
    assert columns.rows.equals(whole.rows)
    for begin, end in ((0, 5), (0, 2), (2, 4), (4, 5)):
        part = columns.part(begin, end)
        assert (part.first, part.last) == (7 + begin, 6 + end)
        assert part.rows.equals(whole.rows.slice(begin, end - begin))


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_both_kinds_of_message_are_decoded_to_the_same_columns(task: Task) -> None:
    for key, value, headers in (encode_events(events(task)), encode_stream(events(task))):
        found = decode_columns(task, key, value, headers)
        assert isinstance(found, EventColumns)
        rows = decode_event_message(task, key, value, headers)
        assert isinstance(rows, EventBatch)
        assert (found.device, found.epoch) == (rows.device, rows.epoch) == ("d0", "e1")
        assert found.rows.equals(rows.rows)
        assert rows.rows.equals(events(task).rows)


def test_a_batch_with_several_models_keeps_each_rows_model() -> None:
    whole = events(tiny)
    models = pa.array([f"{i % 2}-aaaaaaaa" for i in range(5)])
    rows = whole.rows.set_column(2, whole.rows.schema.field("model"), models)
    columns = as_columns(dataclasses.replace(whole, rows=rows))
    assert columns.rows.equals(rows)
    assert columns.part(1, 3).rows.equals(rows.slice(1, 2))


def test_rows_that_are_no_events_are_refused() -> None:
    rows = pa.RecordBatch.from_pylist([{"seq": 1}])
    with pytest.raises(ValueError, match="not the columns of events"):
        as_columns(EventBatch("d0", "e1", 1, rows))
