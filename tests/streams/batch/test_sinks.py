"""Every row is in its sink once, in whatever form, and what is in the way is said."""

import json
import sqlite3
import threading
import uuid
from contextlib import closing
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import adbc_driver_postgresql.dbapi
import duckdb
import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

from streams.contract.errors import UsageError
from tests.rig.made_up.killed import Killed, killed_at, once_at
from tests.rig.processes.polling import until
from tests.rig.servers.postgresql import Server
from tests.streams.batch.support import (
    Submitted,
    good_rows,
    rows_of,
    submitted,
    write_bedrock,
    write_lines,
    write_parquet,
)
from tidewheel import read_output

TABLES = ("delta", "duckdb", "sqlite", "postgresql")
FILES = ("parquet", "jsonl", "csv", "bedrock")
OUTPUTS = {
    "delta": "out.delta", "duckdb": "out.duckdb", "sqlite": "out.sqlite", "parquet": "out",
    "jsonl": "out.jsonl", "csv": "out.csv", "bedrock": "out",
}  # fmt: skip
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


class Sink:
    """An output of one kind that belongs to a test."""

    def __init__(self, kind: str, place: Path, request: pytest.FixtureRequest) -> None:
        self.kind, self.place, self.table = kind, place, f"t{uuid.uuid4().hex}"
        self.to = OUTPUTS.get(kind, "")
        if kind == "postgresql":
            self.to = str(request.getfixturevalue("database").uri)
        if kind == "s3":
            request.getfixturevalue("s3_environ")
            self.to = f"s3://models/{uuid.uuid4().hex}"

    def job(self, *inputs: Path, **more: Any) -> Submitted:
        options: dict[str, Any] = {"to": self.to, "table": self.table, **more}
        if self.kind == "bedrock":
            options |= {"output_format": "bedrock", "id": None, "label_column": None, "keep": []}
        return submitted(self.place, *inputs, **options)

    def rows(self) -> list[dict[str, Any]]:
        """All rows in the order of jobs, shards and numbers; outputs as lists."""
        path, found = str(self.place / self.to), list[dict[str, Any]]()
        if self.kind in FILES:
            return rows_of(self.place / self.to)
        if self.kind == "s3":
            return list(read_output(self.to).to_table().to_pylist())
        if self.kind == "delta":
            found = DeltaTable(path).to_pyarrow_table().to_pylist()
        elif self.kind == "duckdb":
            with closing(duckdb.connect(path, read_only=True)) as connection:
                found = connection.sql(f"SELECT * FROM {self.table}").to_arrow_table().to_pylist()
        elif self.kind == "sqlite":
            with closing(sqlite3.connect(path)) as connection:
                connection.row_factory = sqlite3.Row
                found = [dict(row) for row in connection.execute(f"SELECT * FROM {self.table}")]
            for row in found:
                row["outputs"] = row["outputs"] and json.loads(row["outputs"])
        else:
            with (
                closing(adbc_driver_postgresql.dbapi.connect(self.to)) as connection,
                connection.cursor() as cursor,
            ):
                cursor.execute(f"SELECT * FROM {self.table}")
                found = cursor.fetch_arrow_table().to_pylist()
        return sorted(found, key=lambda row: (row["job"], row["shard"], row["file"], row["row"]))

    def ids(self) -> list[str]:
        return [row["recordId" if self.kind == "bedrock" else "id"] for row in self.rows()]


@pytest.fixture
def sink(tmp_path: Path, request: pytest.FixtureRequest) -> Sink:
    return Sink(request.param, tmp_path, request)


def every(*kinds: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("sink", kinds, indirect=True)


@every(*TABLES, "s3", *FILES)
def test_a_job_that_ends_at_each_step_in_turn_loses_and_doubles_nothing(
    tmp_path: Path, sink: Sink
) -> None:
    """In this process; tests/compose/cli/test_jobs.py kills real ones."""
    rows = good_rows(60)
    files = [tmp_path / "in" / f"{n}.jsonl" for n in range(3)]
    for n, path in enumerate(files):
        write = write_bedrock if sink.kind == "bedrock" else write_lines
        write(path, rows[20 * n : 20 * n + 20])
    job = sink.job(tmp_path / "in")
    loads = () if sink.kind in FILES else (6, 7)
    for step in (2, 3, 4, 5, *loads, 8, 9):
        first = sink.kind == "bedrock" or step in (2, 8, 9)  # it has a shard for each file
        dies = killed_at(f"score-step-{step}", time=1 if first else 2)
        with pytest.raises(Killed):
            job.run(reached=dies)
    assert job.run().state == "Completed"
    assert sink.ids() == [row["event"] for row in rows]
    assert list(tmp_path.rglob(".*.tmp")) == []


@every(*TABLES)
def test_a_table_has_every_row_once_as_the_files_have_them(tmp_path: Path, sink: Sink) -> None:
    rows = good_rows(95)
    rows[7]["segment"] = [0.0]
    rows[8]["label"] = None
    path = write_parquet(tmp_path / "a.parquet", rows)
    files = submitted(tmp_path, path, to="files")
    files.run()
    job = sink.job(path)
    done = job.run()
    assert (done.state, done.processed) == ("Completed", 95), done.reason
    found = sink.rows()
    assert {row["job"] for row in found} == {job.folder.specification().id}
    assert len({row["shard"] for row in found}) == done.shards > 3
    for row, wanted in zip(found, files.rows(), strict=True):
        row.pop("job"), row.pop("shard")
        if sink.kind == "sqlite":
            row["correct"] = row["correct"] if row["correct"] is None else bool(row["correct"])
        assert row == wanted
    assert list((job.folder.folder / "staged").iterdir()) == []
    assert json.loads((job.folder.folder / "_manifest.json").read_text())["state"] == "Completed"

    assert sink.job(path, job=tmp_path / "second.job").run().state == "Completed"
    assert job.run().state == "Completed"
    assert len(sink.rows()) == 190


def table() -> pa.Table:
    row = good_rows(1)[0]
    columns = {name: pa.array([value], kind) for name, (kind, value, _) in KEPT.items()}
    return pa.table({"segment": [row["segment"]], "event": [7], **columns})


@every(*TABLES, "parquet", "jsonl")
def test_columns_of_every_type_are_carried_over(tmp_path: Path, sink: Sink) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(table(), path)
    assert sink.job(path, label_column=None, keep=list(KEPT)).run().state == "Completed"
    (row,) = sink.rows()
    assert row["id"] == "7"
    if sink.kind == "parquet":
        found = pq.read_table(tmp_path / "out" / "part-00000.parquet").select(list(KEPT))
        assert str(found.to_pylist()) == str(table().select(list(KEPT)).to_pylist())  # also NaN
        assert found.schema.field("at").type == pa.timestamp("ns")
        return
    if sink.kind == "jsonl":
        assert {name: row[name] for name in KEPT} == {n: text for n, (*_, text) in KEPT.items()}
    assert row["kind"] == "é"
    assert row["dotted.name"] in (True, 1)
    assert row["dotted"] is None
    assert str(row["day"]).startswith("2024-02-29")
    assert "2023-11-14" in str(row["at"])
    nested = row["nested"]
    assert (json.loads(nested) if isinstance(nested, str) else nested) == {"a": [1, None]}


def test_values_of_json_lines_are_json_text_in_parquet(tmp_path: Path) -> None:
    values: list[Any] = ["é", 1, [1.5, None], {"a": "b"}, None]
    rows = [{**row, "site": value} for row, value in zip(good_rows(5), values, strict=True)]
    job = submitted(tmp_path, write_lines(tmp_path / "a.jsonl", rows))
    assert job.run().state == "Completed"
    found = [row["site"] for row in job.rows()]
    assert [None if text is None else json.loads(text) for text in found] == values


@every(*TABLES)
def test_a_table_without_a_column_of_ours_is_refused_before_the_job_exists(
    tmp_path: Path, sink: Sink
) -> None:
    path = write_parquet(tmp_path / "a.parquet", good_rows(5))
    sink.job(path, label_column=None, keep=[]).run()
    with pytest.raises(UsageError, match="has no column 'label'"):
        sink.job(path, job=tmp_path / "second.job")
    assert not (tmp_path / "second.job").exists()


@every(*TABLES, "parquet")
def test_a_retry_replaces_the_rows_of_shards_with_errors(tmp_path: Path, sink: Sink) -> None:
    rows = good_rows(60)
    rows[25]["segment"] = [0.0]
    job = sink.job(write_parquet(tmp_path / "a.parquet", rows))
    first = job.run()
    before = {path: path.stat().st_mtime_ns for path in job.output.glob("part-*")}
    with job.folder.locked():
        assert job.folder.mark_failed() == 1
    again = job.run()
    assert (again.state, again.attempts) == ("Completed", first.attempts + 1)
    assert sink.ids() == [row["event"] for row in rows]
    after = {path: path.stat().st_mtime_ns for path in job.output.glob("part-*")}
    if sink.kind == "parquet":
        assert [p.name for p in before if before[p] != after[p]] == ["part-00001.parquet"]


@every("postgresql")
def test_a_database_that_goes_away_and_comes_back_gets_each_shard_once(
    tmp_path: Path, sink: Sink, database: Server
) -> None:
    rows = good_rows(60)
    job = sink.job(write_parquet(tmp_path / "a.parquet", rows))

    def said() -> bool:
        return any("is loaded again" in line["text"] for line in job.folder.log())

    def back() -> None:
        until(said, "the shard is loaded again")
        database.start()

    returning = threading.Thread(target=back)

    def restart() -> None:
        database.stop()
        returning.start()

    restarted = once_at("score-step-5", restart, 2)
    assert job.run(reached=restarted, pause_s=(0.5, 2.0)).state == "Completed"
    returning.join()
    assert sink.ids() == [row["event"] for row in rows]


@every("postgresql")
def test_a_database_that_is_away_fails_the_job_in_one_line_which_goes_on_later(
    tmp_path: Path, sink: Sink, database: Server
) -> None:
    job = sink.job(write_parquet(tmp_path / "a.parquet", good_rows(30)))
    database.stop()
    try:
        found = job.run()
    finally:
        database.start()
    assert (found.state, job.folder.state().passing) == ("Failed", True)
    assert "Connection refused" in found.reason
    assert "\n" not in found.reason
    assert job.run().state == "Completed"


def test_a_database_that_another_writes_is_waited_for(tmp_path: Path) -> None:
    job = submitted(tmp_path, write_parquet(tmp_path / "a.parquet", good_rows(30)), to="o.sqlite")
    with closing(sqlite3.connect(job.output, check_same_thread=False)) as other:
        other.execute("CREATE TABLE theirs (x)")
        other.execute("BEGIN EXCLUSIVE")
        running = threading.Thread(target=job.run)
        running.start()
        until(lambda: job.folder.plan() is not None, "the job has begun")
        other.rollback()
        running.join()
    assert job.folder.state().state == "Completed"


@every("s3")
def test_objects_are_put_where_nothing_is_and_missed_when_they_are_gone(
    tmp_path: Path, sink: Sink
) -> None:
    path = write_parquet(tmp_path / "a.parquet", good_rows(60))
    job, store = sink.job(path), fsspec.filesystem("s3")

    def gone(point: str) -> None:
        if point == "score-step-7" and len(store.find(sink.to)) == 3:
            store.rm(f"{sink.to}/part-00000.parquet")

    found = job.run(reached=gone)
    assert found.state == "Failed"
    assert "40 rows of this job, 60 are due" in found.reason
    with pytest.raises(UsageError, match="exists"):
        sink.job(path, job=tmp_path / "second.job")
    beside = json.loads(store.cat(f"{sink.to}/_manifest.json"))
    assert (beside["state"], beside["output"]) == ("Failed", sink.to)


def test_csv_has_lists_as_json_text_and_nothing_for_null(tmp_path: Path) -> None:
    rows = good_rows(30)
    rows[3]["segment"] = None
    path = write_parquet(tmp_path / "a.parquet", rows)
    job = submitted(tmp_path, path, to="out.csv")
    assert job.run().state == "Completed"
    plain = submitted(tmp_path, path, to="plain")
    plain.run()
    for row, wanted in zip(job.rows(), plain.rows(), strict=True):
        outputs = json.loads(row["outputs"]) if row["outputs"] else None
        assert outputs == wanted["outputs"]
        for name in ("id", "class", "error", "reason", "label"):
            assert (row[name] or None) == wanted[name]
        assert row["correct"] == ("" if wanted["correct"] is None else str(wanted["correct"]))


@every("bedrock")
def test_the_output_of_bedrock_is_a_file_for_each_input_beside_its_manifest(
    tmp_path: Path, sink: Sink
) -> None:
    rows = good_rows(40)
    rows[3]["segment"] = [1.0]
    write_bedrock(tmp_path / "in" / "a.jsonl", rows[:30])
    write_bedrock(tmp_path / "in" / "b.jsonl", rows[30:])
    job = sink.job(tmp_path / "in")
    assert job.run().state == "Completed"
    assert sorted(path.name for path in job.output.iterdir()) == [
        "_manifest.json", "a.jsonl.out", "b.jsonl.out", "manifest.json.out"
    ]  # fmt: skip
    found = sink.rows()
    assert [row["modelInput"] for row in found] == rows
    assert found[3]["error"]["errorCode"] == 400
    assert "wrong-width" in found[3]["error"]["errorMessage"]
    assert found[4]["modelOutput"]["class"] in ("slow", "medium", "fast")
    assert json.loads((job.output / "manifest.json.out").read_text()) == {
        "totalRecordCount": 40, "processedRecordCount": 40, "successRecordCount": 39,
        "errorRecordCount": 1,
    }  # fmt: skip
    write_bedrock(tmp_path / "more" / "a.jsonl", rows)
    with pytest.raises(UsageError, match=r"two inputs are named a\.jsonl"):
        sink.job(tmp_path / "in", tmp_path / "more", to="two")
