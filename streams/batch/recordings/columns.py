"""The columns of readings: time, device, one a channel, and a label."""

from collections.abc import Sequence
from dataclasses import replace

from streams.batch.records.documents import Columns, InputFormat, Named, Selection
from streams.batch.sources.inputs import Wanted, choose_columns, names_of
from streams.contract.errors import UsageError
from streams.contract.task import Segment, Task

TIME, DEVICE = "time", "device"
OURS = ("device", "begin", "time")  # of the output


def one_sample(task: Task) -> Task:
    """Return the task of which a segment is one reading."""
    return replace(task, segment=Segment(samples=1, hop=1))


def reading_columns(
    task: Task, kind: InputFormat, files: Sequence[Named], wanted: Wanted
) -> Columns:
    """Return the columns of readings; `id` is that of the device, None where each file is one
    device's, with its name."""
    clash = sorted(set(wanted.keep) & set(OURS))
    if clash:
        raise UsageError(f"--keep {clash[0]}: rows of readings have that column anyway")
    time = wanted.time or TIME
    device = wanted.id
    if device is None and DEVICE in names_of(kind, files[0]):
        device = DEVICE
    columns = list(wanted.columns)
    if not columns and not wanted.drop:
        columns = list(task.channels)
    asked = replace(wanted, columns=columns, id=device, time=time)
    return choose_columns(one_sample(task), kind, files, asked)


def as_read(columns: Columns) -> Columns:
    """Return the columns as they are read: the time too, and every reading of the device whatever
    its event time, because a segment needs those before it."""
    selection = columns.selection
    where = Selection(where=selection.where, columns=selection.columns, time=selection.time)
    keep = list(dict.fromkeys([*columns.keep, str(selection.time)]))
    return columns.model_copy(update={"keep": keep, "selection": where})
