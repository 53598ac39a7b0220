"""Batch jobs into databases, tables and files, as real processes: killed at each numbered step."""

import json
import signal
import uuid
from pathlib import Path

import fsspec
import pytest

from streams.runtime.key_files import create_key
from tests.compose.cli.test_cli import fails, tidewheel
from tests.compose.cli.test_jobs import FILES, ROWS, expected, words
from tests.edge_client.models import artifact, plain
from tests.streams.batch.sinks import SUFFIX, rows_in
from tests.streams.batch.support import good_rows, rows_of, write_bedrock, write_parquet
from tidewheel import read_output

STEPS = range(1, 10)


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lake")
    (folder / "model.twa").write_bytes(artifact(create_key(folder / "k.pem"), plain(1)))
    for n in range(FILES):
        rows = good_rows(ROWS, n)
        rows[3]["segment"] = [1.0]
        write_parquet(folder / "parquet" / f"{n}.parquet", rows)
        write_bedrock(folder / "bedrock" / f"{n}.jsonl", rows)
    return folder


@pytest.mark.parametrize("kind", ["delta", "duckdb", "sqlite", "postgresql"])
@pytest.mark.parametrize("step", STEPS)
def test_a_job_into_a_table_that_is_killed_at_any_step_loses_and_doubles_nothing(
    tmp_path: Path, lake: Path, request: pytest.FixtureRequest, kind: str, step: int
) -> None:
    table = "scores" if kind == "delta" else f"t{uuid.uuid4().hex}"
    to = request.getfixturevalue("database").uri if kind == "postgresql" else SUFFIX[kind]
    command = [*words(lake, to=to), "--job", "a.job", "--table", table]
    point = f"score-step-{step}:1"
    killed = tidewheel(*command, folder=tmp_path, TIDEWHEEL_FAILPOINT=point)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    done = tidewheel("jobs", "resume", "a.job", "--json", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["processed"] == FILES * ROWS
    found = rows_in(kind, to if kind == "postgresql" else tmp_path / to, table)
    assert [row["id"] for row in found] == expected(lake)
    assert list((tmp_path / "a.job" / "staged").iterdir()) == []


@pytest.mark.parametrize(
    ("kind", "step"), [*(("parquet", step) for step in range(4, 9)), ("jsonl", 6), ("csv", 7)]
)
def test_a_job_into_objects_that_is_killed_at_any_step_loses_and_doubles_nothing(
    tmp_path: Path, lake: Path, s3_environ: None, kind: str, step: int
) -> None:
    url = f"s3://models/{uuid.uuid4().hex}/scores"
    command = [*words(lake, to=url), "--output-format", kind]
    point = f"score-step-{step}:1"
    killed = tidewheel(*command, folder=tmp_path, TIDEWHEEL_FAILPOINT=point)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    done = tidewheel("jobs", "resume", "scores.job", "--json", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["processed"] == FILES * ROWS
    assert read_output(url).to_table()["id"].to_pylist() == expected(lake)
    store = fsspec.filesystem("s3")
    names = {f"part-{n:05}.{kind}" for n in range(FILES)}
    assert {path.rpartition("/")[2] for path in store.find(url)} == {*names, "_manifest.json"}
    beside = json.loads(store.cat(f"{url}/_manifest.json"))
    assert beside == json.loads((tmp_path / "scores.job" / "_manifest.json").read_text())
    assert (beside["state"], beside["output"]) == ("Completed", url)
    assert list((tmp_path / "scores.job" / "staged").iterdir()) == []


def test_bedrocks_output_is_put_into_a_bucket(tmp_path: Path, lake: Path, s3_environ: None) -> None:
    url = f"s3://models/{uuid.uuid4().hex}"
    command = words(lake, "bedrock", url)[:9]
    command += ["--id", "event", "--output-format", "bedrock", "--job", "b.job"]
    done = tidewheel(*command, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    store = fsspec.filesystem("s3")
    lines = [
        json.loads(line)
        for n in range(FILES)
        for line in store.cat(f"{url}/{n}.jsonl.out").splitlines()
    ]
    assert [line["recordId"] for line in lines] == expected(lake)
    assert json.loads(store.cat(f"{url}/manifest.json.out"))["totalRecordCount"] == FILES * ROWS


def test_a_url_that_cannot_be_the_output_is_one_line_and_leaves_no_job(
    tmp_path: Path, lake: Path, s3_environ: None
) -> None:
    store, url = fsspec.filesystem("s3"), f"s3://models/{uuid.uuid4().hex}"
    store.pipe_file(f"{url}/other.txt", b"")
    for to, text in (
        (url, f"the output {url} exists"),
        ("s3://no-such-bucket/scores", "there is no bucket 'no-such-bucket'"),
        ("s3://models/scores.delta", "a URL takes objects of Parquet"),
        ("file:///tmp/scores", "write a local folder"),
    ):
        fails(tidewheel(*words(lake, to=to), "--job", "a.job", folder=tmp_path), 2, text)
        assert not (tmp_path / "a.job").exists()


def test_objects_that_are_gone_at_the_end_fail_the_job(
    tmp_path: Path, lake: Path, s3_environ: None
) -> None:
    url = f"s3://models/{uuid.uuid4().hex}"
    command = [*words(lake, to=url), "--job", "a.job"]
    tidewheel(*command, folder=tmp_path, TIDEWHEEL_FAILPOINT=f"score-step-7:{FILES}")
    fsspec.filesystem("s3").rm(f"{url}/part-00000.parquet")
    done = tidewheel("jobs", "resume", "a.job", folder=tmp_path)
    assert done.returncode == 1, done.stdout
    assert f"{(FILES - 1) * ROWS:,} rows of this job, {FILES * ROWS:,} are due" in done.stdout


@pytest.mark.parametrize("kind", ["csv", "bedrock"])
@pytest.mark.parametrize("step", [1, 2, 3, 4, 5, 8, 9])
def test_a_job_into_files_that_is_killed_at_any_step_loses_and_doubles_nothing(
    tmp_path: Path, lake: Path, kind: str, step: int
) -> None:
    source = "bedrock" if kind == "bedrock" else "parquet"
    command = words(lake, source, "out")[:9]
    command += ["--id", "event", "--output-format", kind]
    point = f"score-step-{step}:1"
    killed = tidewheel(*command, folder=tmp_path, TIDEWHEEL_FAILPOINT=point)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert tidewheel("jobs", "resume", "out.job", folder=tmp_path).returncode == 0
    names = [row["recordId" if kind == "bedrock" else "id"] for row in rows_of(tmp_path / "out")]
    assert names == expected(lake)


def test_a_broken_database_is_one_line_and_leaves_no_job(tmp_path: Path, lake: Path) -> None:
    (tmp_path / "out.sqlite").write_text("no database at all, but more than a few bytes of text")
    fails(tidewheel(*words(lake, to="out.sqlite"), folder=tmp_path), 1, "out.sqlite")
    assert not (tmp_path / "out.sqlite.job").exists()
