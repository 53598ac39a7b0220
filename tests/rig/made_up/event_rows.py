"""Rows of an EventBatch, made of arrays as a device has them."""

from typing import Any

import pyarrow as pa

from streams.contract.events.batches import batch_of
from streams.contract.events.messages import event_columns, task_layout
from streams.contract.task import Task


def event_rows(task: Task, **arrays: Any) -> pa.RecordBatch:
    """Take what `event_columns` takes."""
    return batch_of(task_layout(task), event_columns(task, **arrays))
