"""Queries that end before all rows are read: the process has to end in order."""

import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import fsspec
import pyarrow as pa
import pytest
from deltalake import write_deltalake

from streams.contract.errors import UsageError
from streams.runtime.files import arrow_files
from streams.worker.store.query import server_account
from streams.worker.store.tables import SCORES, Place, open_table
from streams.worker.windows.rows import store_schema

TIDEWHEEL = str(Path(sys.executable).parent / "tidewheel")
FILES, ROWS = 40, 20
BAR = "select value from duckdb_settings() where name = 'enable_progress_bar'"
NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture(params=["folder", "bucket"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "folder":
        return tmp_path / "a store"
    request.getfixturevalue("s3_environ")
    return "s3://models/a store"


def value(kind: pa.DataType, number: int) -> object:
    if pa.types.is_timestamp(kind):
        return NOW + timedelta(seconds=number)
    if pa.types.is_list(kind):
        return [0.5] * 6
    if pa.types.is_date(kind):
        return NOW.date()
    return str(number) if pa.types.is_string(kind) else pa.scalar(number, pa.int32()).cast(kind)


def fill(place: Place, folder: Path) -> None:
    """Write many small files, as many commits leave them."""
    table, schema = open_table(folder, SCORES), store_schema()
    for number in range(FILES):
        columns = {
            field.name: pa.array([value(field.type, at) for at in range(ROWS)], field.type)
            for field in schema
        }
        at = schema.get_field_index("partition")
        rows = pa.table(columns, schema=schema)
        rows = rows.set_column(at, schema.field(at), pa.array([number % 2] * ROWS, pa.int32()))
        write_deltalake(table, rows, mode="append")
    if place != folder:
        fsspec.filesystem("s3").put(f"{folder}/", f"{place}/", recursive=True)


def test_a_query_that_needs_only_some_rows_ends_in_order(place: Place, tmp_path: Path) -> None:
    fill(place, tmp_path / "a store")
    assert server_account(place) == {}  # a worker is at making the tables
    for table in ("drops", "labels", "revised", "aged"):
        open_table(place, table)
    assert sum(scored for scored, _ in server_account(place).values()) == FILES * ROWS
    for sql, told in (
        ("select seq from scores limit 1", {"seq": 0}),
        ("select count(*) as n from scores", {"n": FILES * ROWS}),
        ("select count(revision) as n from revised", {"n": 0}),
    ):
        asked = [TIDEWHEEL, "query", sql, "--store", str(place), "--json"]
        ended = subprocess.run(asked, capture_output=True, text=True)
        assert (ended.returncode, ended.stderr) == (0, "")
        assert json.loads(ended.stdout).keys() == told.keys()
        assert sql.endswith("limit 1") or json.loads(ended.stdout) == told


def test_a_query_shows_no_bar_among_its_rows(tmp_path: Path) -> None:
    for table in ("scores", "drops", "labels", "revised", "aged"):
        open_table(tmp_path, table)
    # DuckDB takes a `__main__` without a file for an interactive process and shows a bar after 2 s.
    run = "import sys; from compose.cli.main import main; sys.argv[0] = 'tidewheel'; main()"
    asked = [sys.executable, "-c", run, "query", BAR, "--store", str(tmp_path), "--json"]
    ended = subprocess.run(asked, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (0, '{"value": "false"}\n')


def test_where_s3_is_comes_from_the_environment() -> None:
    environ = {"AWS_ENDPOINT_URL": "http://127.0.0.1:9000/", "AWS_REGION": "eu-north-1"}
    files = arrow_files("s3://bucket/prefix/", environ)
    assert files.base_path == "bucket/prefix/"
    assert files.base_fs.region == "eu-north-1"


def test_other_urls_are_those_that_arrow_knows() -> None:
    assert arrow_files("gs://bucket/store").base_path == "bucket/store/"
    with pytest.raises(UsageError, match="ftp://bucket/store cannot be read"):
        arrow_files("ftp://bucket/store")
