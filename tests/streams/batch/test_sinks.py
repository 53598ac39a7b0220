"""Every row is in its sink once, in whatever form, and what is in the way is said."""

import json
import sqlite3
import time
from contextlib import closing, suppress
from itertools import count
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from streams.batch.jobs import loads
from streams.batch.jobs.retrying import mark_failed
from streams.batch.sinks.kafka_sink import KafkaSink
from streams.contract.errors import UsageError
from streams.kafka.reader import Reader
from streams.kafka.settings import BrokerSettings
from tests.postgresql import Server
from tests.streams.batch.sinks import SUFFIX, TABLES, rows_in
from tests.streams.batch.support import (
    Submitted,
    good_rows,
    rows_of,
    submitted,
    write_bedrock,
    write_lines,
    write_parquet,
)
from tests.streams.batch.test_output import KEPT, table


def place_of(kind: str, folder: Path, request: pytest.FixtureRequest) -> str:
    """What `--to` names; a PostgreSQL's table is the folder's name."""
    if kind == "postgresql":
        return str(request.getfixturevalue("database").uri)
    return SUFFIX[kind]


def found_in(kind: str, to: str, job: Submitted, name: str) -> list[dict[str, Any]]:
    return rows_in(kind, to if kind == "postgresql" else job.output, name)


@pytest.fixture
def named(tmp_path: Path) -> str:
    """A table of this test alone."""
    return tmp_path.name if tmp_path.name != "scores" else "t"


@pytest.mark.parametrize("kind", TABLES)
def test_a_table_has_every_row_once_as_the_files_have_them(
    tmp_path: Path, request: pytest.FixtureRequest, kind: str, named: str
) -> None:
    rows = good_rows(95)
    rows[7]["segment"] = [0.0]
    rows[8]["label"] = None
    path = write_parquet(tmp_path / "a.parquet", rows)
    files = submitted(tmp_path, path, to="files")
    files.run()
    to = place_of(kind, tmp_path, request)
    job = submitted(tmp_path, path, to=to, table=named)
    done = job.run()
    assert done.state == "Completed", done.reason
    assert done.processed == 95
    table_name = "scores" if kind == "delta" else named
    found = found_in(kind, to, job, table_name)
    assert {row["job"] for row in found} == {job.folder.specification().id}
    assert len({row["shard"] for row in found}) == done.shards > 3
    for row, wanted in zip(found, files.rows(), strict=True):
        row.pop("job"), row.pop("shard")
        if kind == "sqlite":
            row["correct"] = row["correct"] if row["correct"] is None else bool(row["correct"])
        assert row == wanted
    assert list((job.folder.folder / "staged").iterdir()) == []
    assert json.loads((job.folder.folder / "_manifest.json").read_text())["state"] == "Completed"

    second = submitted(tmp_path, path, to=to, table=named, job=tmp_path / "second.job")
    assert second.run().state == "Completed"
    assert len(found_in(kind, to, job, table_name)) == 190
    assert job.run().state == "Completed"
    assert len(found_in(kind, to, job, table_name)) == 190


@pytest.mark.parametrize("kind", TABLES)
def test_columns_of_every_type_come_into_a_table(
    tmp_path: Path, request: pytest.FixtureRequest, kind: str, named: str
) -> None:
    import pyarrow.parquet as pq

    path = tmp_path / "a.parquet"
    pq.write_table(table(), path)
    to = place_of(kind, tmp_path, request)
    job = submitted(tmp_path, path, to=to, table=named, label=None, keep=list(KEPT))
    assert job.run().state == "Completed"
    (row,) = found_in(kind, to, job, "scores" if kind == "delta" else named)
    assert row["kind"] == "é"
    assert row["dotted.name"] in (True, 1)
    assert row["dotted"] is None
    assert str(row["day"]).startswith("2024-02-29")
    assert "2023-11-14" in str(row["at"])
    nested = row["nested"]
    assert (json.loads(nested) if isinstance(nested, str) else nested) == {"a": [1, None]}


@pytest.mark.parametrize("kind", TABLES)
def test_a_table_without_a_column_of_ours_is_refused_before_the_job_exists(
    tmp_path: Path, request: pytest.FixtureRequest, kind: str, named: str
) -> None:
    path = write_parquet(tmp_path / "a.parquet", good_rows(5))
    to = place_of(kind, tmp_path, request)
    first = submitted(tmp_path, path, to=to, table=named, label=None, keep=[])
    first.run()
    with pytest.raises(UsageError, match="has no column 'label'"):
        submitted(tmp_path, path, to=to, table=named, job=tmp_path / "second.job")
    assert not (tmp_path / "second.job").exists()


@pytest.mark.parametrize("kind", TABLES)
@pytest.mark.parametrize("step", [*range(3, 10)])
def test_a_crash_at_each_step_loads_no_row_twice_and_loses_none(
    tmp_path: Path, request: pytest.FixtureRequest, kind: str, named: str, step: int
) -> None:
    """In this process; test_jobs kills real ones."""
    rows = good_rows(60)
    to = place_of(kind, tmp_path, request)
    path = write_parquet(tmp_path / "a.parquet", rows)
    job = submitted(tmp_path, path, to=to, table=named)

    class Crash(BaseException):
        pass

    def killed(point: str) -> None:
        if point == f"score-step-{step}":
            raise Crash

    with pytest.raises(Crash):
        job.run(reached=killed)
    with suppress(Crash):  # after step 9 it is complete
        job.run(reached=killed)
    done = job.run()
    assert done.state == "Completed"
    found = found_in(kind, to, job, "scores" if kind == "delta" else named)
    assert [row["id"] for row in found] == [row["event"] for row in rows]


@pytest.mark.parametrize("kind", TABLES)
def test_a_retry_replaces_the_rows_of_shards_with_errors(
    tmp_path: Path, request: pytest.FixtureRequest, kind: str, named: str
) -> None:
    rows = good_rows(60)
    rows[25]["segment"] = [0.0]
    to = place_of(kind, tmp_path, request)
    job = submitted(tmp_path, write_parquet(tmp_path / "a.parquet", rows), to=to, table=named)
    first = job.run()
    with job.folder.locked():
        assert mark_failed(job.folder) == 1
    again = job.run()
    assert again.attempts == first.attempts + 1
    assert again.state == "Completed"
    found = found_in(kind, to, job, "scores" if kind == "delta" else named)
    assert [row["id"] for row in found] == [row["event"] for row in rows]


def test_a_retry_replaces_output_files_too(tmp_path: Path) -> None:
    rows = good_rows(60)
    rows[25]["segment"] = [0.0]
    job = submitted(tmp_path, write_parquet(tmp_path / "a.parquet", rows))
    job.run()
    before = {path: path.stat().st_mtime_ns for path in job.output.glob("part-*")}
    assert mark_failed(job.folder) == 1
    assert job.run().state == "Completed"
    after = {path: path.stat().st_mtime_ns for path in job.output.glob("part-*")}
    assert [p.name for p in before if before[p] != after[p]] == ["part-00001.parquet"]


def test_a_database_that_is_restarted_in_the_middle_of_a_shard_gets_it_once(
    tmp_path: Path, database: Server, named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loads, "PAUSE_S", (0.05, 1.0))
    rows = good_rows(60)
    path = write_parquet(tmp_path / "a.parquet", rows)
    job = submitted(tmp_path, path, to=database.uri, table=named)
    import streams.batch.sinks.postgresql_sink as sink

    reads = count()
    before = sink.reader_of

    def restarted(*args: Any) -> pa.RecordBatchReader:
        if next(reads) == 1:
            database.stop()
            database.start()
        return before(*args)

    monkeypatch.setattr(sink, "reader_of", restarted)
    assert job.run().state == "Completed"
    assert [row["id"] for row in rows_in("postgresql", database.uri, named)] == [
        row["event"] for row in rows
    ]
    assert any("is loaded again" in line["text"] for line in job.folder.log())


def test_a_database_that_is_away_fails_the_job_in_one_line_which_goes_on_later(
    tmp_path: Path, database: Server, named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loads, "PAUSE_S", (0.01, 0.02))
    path = write_parquet(tmp_path / "a.parquet", good_rows(30))
    job = submitted(tmp_path, path, to=database.uri, table=named)
    database.stop()
    try:
        found = job.run()
    finally:
        database.start()
    assert found.state == "Failed"
    assert "Connection refused" in found.reason
    assert "\n" not in found.reason
    assert job.run().state == "Completed"


def test_a_database_that_another_writes_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import streams.batch.sinks.sqlite_sink as sink

    monkeypatch.setattr(sink, "WAIT_S", 0.05)
    monkeypatch.setattr(loads, "PAUSE_S", (0.01, 0.02))
    job = submitted(tmp_path, write_parquet(tmp_path / "a.parquet", good_rows(30)), to="o.sqlite")
    with closing(sqlite3.connect(job.output)) as other:
        other.execute("CREATE TABLE theirs (x)")
        other.execute("BEGIN EXCLUSIVE")
        assert job.run().state == "Failed"
        other.rollback()
    assert job.run().state == "Completed"
    assert len(rows_in("sqlite", job.output)) == 30


@pytest.mark.parametrize(
    ("to", "options", "text"),
    [
        ("postgresql://me:secret@db/x", {}, "PGPASSWORD"),
        ("s3://bucket/out.delta", {}, "a local folder, a database or kafka"),
        ("out", {"output_format": "postgresql"}, "write postgresql://HOST/DATABASE"),
        ("out", {"output_format": "word"}, "--output-format word"),
        ("out", {"output_format": "bedrock"}, "needs Bedrock's lines"),
        ("postgresql://tester@127.0.0.1:1/x", {}, "Connection refused"),
    ],
)
def test_an_output_that_cannot_be_is_refused_before_the_job_exists(
    tmp_path: Path, to: str, options: dict[str, Any], text: str
) -> None:
    path = write_parquet(tmp_path / "a.parquet", good_rows(5))
    with pytest.raises(Exception, match=text):
        submitted(tmp_path, path, to=to, **options)
    assert list(tmp_path.iterdir()) == [path]


# --- files ----------------------------------------------------------------------------------------


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


def test_the_output_of_bedrock_is_a_file_for_each_input_beside_its_manifest(tmp_path: Path) -> None:
    rows = good_rows(40)
    rows[3]["segment"] = [1.0]
    write_bedrock(tmp_path / "in" / "a.jsonl", rows[:30])
    write_bedrock(tmp_path / "in" / "b.jsonl", rows[30:])
    job = submitted(
        tmp_path, tmp_path / "in", id=None, label=None, keep=[], output_format="bedrock"
    )
    assert job.run().state == "Completed"
    assert sorted(path.name for path in job.output.iterdir()) == [
        "_manifest.json", "a.jsonl.out", "b.jsonl.out", "manifest.json.out"
    ]  # fmt: skip
    found = rows_of(job.output)
    assert [row["recordId"] for row in found] == [row["event"] for row in rows]
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
        submitted(
            tmp_path, tmp_path / "in", tmp_path / "more", to="two", id=None, label=None, keep=[],
            output_format="bedrock",
        )  # fmt: skip


# --- Kafka ----------------------------------------------------------------------------------------


@pytest.mark.kafka
def test_a_topic_has_every_row_under_a_key_that_stays_the_same(
    tmp_path: Path, kafka: BrokerSettings
) -> None:
    from streams.contract.topics import TopicSpec
    from streams.kafka.admin import ensure_topics

    name = f"batch.{tmp_path.name}"
    rows = write_lines(tmp_path / "a.jsonl", good_rows(60))
    with pytest.raises(UsageError, match=f"no topic {name}"):
        submitted(tmp_path, rows, to=f"kafka:{name}", broker=lambda: kafka)
    ensure_topics(kafka, [TopicSpec(name, 1, "delete", -1)])
    job = submitted(tmp_path, rows, to=f"kafka:{name}", broker=lambda: kafka)

    class Crash(BaseException):
        pass

    def killed(point: str) -> None:
        if point == "score-step-6":
            raise Crash

    with pytest.raises(Crash):
        job.run(reached=killed, broker=lambda: kafka)
    assert job.run(broker=lambda: kafka).state == "Completed"
    messages = read_all(kafka, name)
    latest = {key: json.loads(value) for key, value in messages}
    assert len(messages) > len(latest) == 60
    assert {row["id"] for row in latest.values()} == {row["event"] for row in good_rows(60)}
    for key, value in messages:
        assert json.loads(value) == latest[key]
    assert KafkaSink(kafka, name, "x").count() is None


def read_all(kafka: BrokerSettings, topic: str) -> list[tuple[bytes, bytes]]:
    """All messages of a topic."""
    reader, found = Reader(kafka, [topic]), list[tuple[bytes, bytes]]()
    try:
        (end,) = reader.ends().values()
        deadline = time.monotonic() + 30
        while len(found) < end and time.monotonic() < deadline:
            found += [(m.key or b"", m.value or b"") for m in reader.poll()]
    finally:
        reader.close()
    return found
