"""A shard of any format as rows, and the columns that it carries over."""

from collections.abc import Iterator

import pyarrow as pa

from streams.batch.records.documents import Columns, InputFormat, Named, PlannedFile, Shard
from streams.batch.records.rows import Rows
from streams.batch.sources import table_rows, text_rows
from streams.batch.sources.tables import KINDS, opened
from streams.batch.sources.text_lines import MAX_LINE_BYTES
from streams.contract.task import Task


def read_shard(
    task: Task,
    kind: InputFormat,
    file: PlannedFile,
    shard: Shard,
    columns: Columns,
    max_bytes: int = MAX_LINE_BYTES,
) -> Iterator[Rows]:
    """Yield the rows of a shard in batches."""
    if kind in KINDS:
        return table_rows.read_shard(task, kind, file, shard, columns)
    return text_rows.read_shard(task, kind, file, shard, columns, max_bytes)


def kept_fields(kind: InputFormat, file: Named | PlannedFile, columns: Columns) -> list[pa.Field]:
    """Return the columns that are carried over from a file; those of text formats are text."""
    if not columns.keep or kind not in KINDS:
        return [pa.field(name, pa.string()) for name in columns.keep]
    with opened(file.path, kind, file.constants) as table:
        return [table.schema.field(name) for name in columns.keep]
