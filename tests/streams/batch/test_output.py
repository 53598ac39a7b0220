"""What rows carry over, in either format, and what JSON does not have."""

import json
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.streams.batch.support import good_rows, rows_of, submitted, write_lines

KEPT = {
    "at": (pa.timestamp("ns"), 1_700_000_000_123_456_789, "2023-11-14 22:13:20.123456789"),
    "day": (pa.date32(), datetime(2024, 2, 29).date(), "2024-02-29"),
    "price": (pa.decimal128(9, 2), Decimal("1.50"), "1.50"),
    "raw": (pa.binary(), b"\x00\xff", "AP8="),
    "none": (pa.float64(), float("nan"), "NaN"),
    "far": (pa.float64(), float("-inf"), "-Infinity"),
    "kind": (pa.dictionary(pa.int8(), pa.string()), "é", "é"),
    "nested": (pa.struct([("a", pa.list_(pa.int64()))]), {"a": [1, None]}, {"a": [1, None]}),
    "dotted.name": (pa.bool_(), True, True),
    "dotted": (pa.int64(), None, None),
}


def table() -> pa.Table:
    row = good_rows(1)[0]
    columns = {name: pa.array([value], kind) for name, (kind, value, _) in KEPT.items()}
    return pa.table({"segment": [row["segment"]], "event": [7], **columns})


@pytest.mark.parametrize("to", ["out", "out.jsonl"])
def test_columns_of_every_type_are_carried_over(tmp_path: Path, to: str) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(table(), path)
    job = submitted(tmp_path, path, to=to, label=None, keep=list(KEPT))
    assert job.run().state == "Completed"
    (row,) = rows_of(job.output)
    assert row["id"] == "7"
    if to == "out":
        found = pq.read_table(job.output / "part-00000.parquet").select(list(KEPT))
        assert str(found.to_pylist()) == str(table().select(list(KEPT)).to_pylist())  # also NaN
        assert found.schema.field("at").type == pa.timestamp("ns")
    else:
        assert {name: row[name] for name in KEPT} == {n: text for n, (*_, text) in KEPT.items()}


def test_values_of_json_lines_are_json_text_in_parquet(tmp_path: Path) -> None:
    values: list[Any] = ["é", 1, [1.5, None], {"a": "b"}, None]
    rows = [{**row, "site": value} for row, value in zip(good_rows(5), values, strict=True)]
    job = submitted(tmp_path, write_lines(tmp_path / "a.jsonl", rows))
    assert job.run().state == "Completed"
    found = [row["site"] for row in job.rows()]
    assert [None if text is None else json.loads(text) for text in found] == values


def test_labels_may_be_in_some_files_of_json_lines_only(tmp_path: Path) -> None:
    bare = [{"event": row["event"], "segment": row["segment"]} for row in good_rows(3)]
    first = write_lines(tmp_path / "a.jsonl", bare)
    second = write_lines(tmp_path / "b.jsonl", good_rows(3, 1))
    found = submitted(tmp_path, first, second).run()
    assert (found.state, found.succeeded, found.labelled) == ("Completed", 6, 3)
