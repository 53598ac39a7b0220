"""A query's rows in each form."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
from rich.console import Console

from compose.reports.query_output import write_result
from streams.contract.errors import UsageError

ROWS = pa.table({"device": ["a", None], "n": [1, 2], "outputs": [[0.5, 1.0], None]})


def test_each_form_holds_the_rows(tmp_path: Path) -> None:
    console = Console(width=80)
    for form in ("table", "csv", "json", "parquet"):
        write_result(ROWS, form, tmp_path / form, console)  # type: ignore[arg-type]
    assert pa.parquet.read_table(tmp_path / "parquet").equals(ROWS)
    assert [json.loads(line) for line in (tmp_path / "json").read_text().splitlines()] == [
        {"device": "a", "n": 1, "outputs": [0.5, 1.0]},
        {"device": None, "n": 2, "outputs": None},
    ]
    back = pa.csv.read_csv(tmp_path / "csv")
    assert back.column("n").to_pylist() == [1, 2]
    assert json.loads(back.column("outputs").to_pylist()[0]) == [0.5, 1.0]
    assert "device" in (tmp_path / "table").read_text()


def test_a_table_shortens_vectors_so_that_a_row_fits(tmp_path: Path) -> None:
    rows = pa.table({"v": [[0.123456, 1.0, 2.0, 3.0, 4.0, 5.0], [1.0]], "x": [0.1 + 0.2, 1e-9]})
    write_result(rows, "table", tmp_path / "table", Console(width=80))
    shown = (tmp_path / "table").read_text()
    assert "[0.123, 1, 2, 3, … 2 more]" in shown
    assert "[1]" in shown
    assert "0.3 " in shown


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--output"):
        write_result(ROWS, "csv", tmp_path / "no" / "file.csv", Console())
