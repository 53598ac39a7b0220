"""The seam to a Delta Lake table as output: one commit a shard."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
from deltalake import DeltaTable, write_deltalake
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError

from streams.batch.records.rows import line_of
from streams.batch.sinks.files import loaded_schema, reader_of, refuse_columns
from streams.contract.errors import Retryable, TidewheelError
from streams.runtime.arrow_files import arrow_files

PLAIN = {
    pa.string(), pa.int64(), pa.int32(), pa.int16(), pa.int8(), pa.float32(), pa.float64(),
    pa.bool_(), pa.date32(), pa.binary(), pa.timestamp("us"), pa.timestamp("us", "UTC"),
}  # fmt: skip


class DeltaSink:
    """A table in a local folder."""

    def __init__(self, place: str, job: str) -> None:
        self._place, self._job = place, job

    def check(self, schema: pa.Schema) -> None:
        with _translated(self._place):
            table = self._table()
            if table is not None:
                found = {field.name for field in table.schema().fields}
                refuse_columns(self._place, found, loaded_schema(schema, _known))

    def prepare(self, schema: pa.Schema) -> None:
        with _translated(self._place):
            if self._table() is None:
                Path(self._place).mkdir(parents=True, exist_ok=True)
                DeltaTable.create(self._place, loaded_schema(schema, _known), mode="ignore")

    def load(self, shard: int, part: Path, *, again: bool) -> None:
        rows: dict[str, Any] = {"mode": "append"}
        if again:
            own = f"job = '{self._job}' AND shard = {shard}"
            rows = {"mode": "overwrite", "predicate": own}
        with _translated(self._place):
            write_deltalake(self._place, reader_of(part, self._job, shard, _known), **rows)

    def count(self) -> int | None:
        with _translated(self._place):
            table = self._table()
            if table is None:
                return 0
            rows = _rows_in(table, self._place).count_rows(filter=ds.field("job") == self._job)
            return int(rows)

    def _table(self) -> Any:
        try:
            return DeltaTable(self._place)
        except TableNotFoundError:
            return None


def dataset_of(where: str) -> ds.Dataset:
    """Return a table's newest version as a dataset; raise TidewheelError if it cannot be read."""
    with _translated(where):
        return _rows_in(DeltaTable(where), where)


def _rows_in(table: DeltaTable, where: str) -> ds.Dataset:
    return table.to_pyarrow_dataset(filesystem=arrow_files(where))


def _known(kind: pa.DataType) -> bool:
    plain = _known(kind.value_type) if pa.types.is_list(kind) else kind in PLAIN
    return plain or bool(pa.types.is_decimal128(kind))


@contextmanager
def _translated(where: str) -> Iterator[None]:
    try:
        yield
    except CommitFailedError as exc:
        raise Retryable(f"another process writes the table {where}: {line_of(exc)}") from exc
    except (DeltaError, OSError) as exc:
        raise TidewheelError(f"the table {where} cannot be used: {line_of(exc)}") from exc
