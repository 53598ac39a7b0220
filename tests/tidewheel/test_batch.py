"""`tidewheel.score` and `read_output`: the command, from Python."""

from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest

import tidewheel
from streams.runtime.trust import create_key
from tests.rig.made_up.models import TINY, artifact, plain
from tests.streams.batch.support import SCHEMA, good_rows, rows_of, write_parquet


@pytest.fixture
def signed(tmp_path: Path) -> dict[str, Any]:
    """Options that name a model and its key."""
    key = create_key(tmp_path / "k.pem")
    (tmp_path / "model.twa").write_bytes(artifact(key, plain(1)))
    options = {"model": tmp_path / "model.twa", "trust": [tmp_path / "k.pub"]}
    return {**options, "state": tmp_path / "state", "processes": 1}


def test_files_are_scored_and_read_back(tmp_path: Path, signed: dict[str, Any]) -> None:
    rows = good_rows(40)
    rows[3]["segment"] = [0.0]
    path = write_parquet(tmp_path / "a.parquet", rows)
    found = tidewheel.score(
        TINY, path, tmp_path / "out", id="event", label_column="label", keep=["site"],
        where="site < 10", **signed,
    )  # fmt: skip
    assert (found.state, found.total, found.succeeded) == ("Completed", 40, 19)
    assert found.errors == {"wrong-width": 1}
    assert found.excluded == 20
    assert found.accuracy == found.correct / 19
    assert found.drifted is None
    assert (tmp_path / "out.job" / "report.md").exists()
    table = tidewheel.read_output(tmp_path / "out").to_table()
    assert table.column("id").to_pylist() == [row["event"] for row in rows[:20]]


@pytest.mark.parametrize("to", ["out.jsonl", "out.csv", "out.delta"])
def test_every_output_that_is_a_folder_is_read_back(
    tmp_path: Path, signed: dict[str, Any], to: str
) -> None:
    path = write_parquet(tmp_path / "a.parquet", good_rows(30))
    tidewheel.score(TINY, [path], tmp_path / to, id="event", **signed)
    found = tidewheel.read_output(tmp_path / to).to_table()
    assert sorted(found.column("id").to_pylist()) == sorted(r["event"] for r in good_rows(30))
    (tmp_path / "empty").mkdir()
    with pytest.raises(tidewheel.UsageError, match="no output of a batch job"):
        tidewheel.read_output(tmp_path / "empty")


@pytest.mark.parametrize("kind", ["arrow", "pandas"])
def test_a_table_in_memory_is_scored(tmp_path: Path, signed: dict[str, Any], kind: str) -> None:
    table = pa.Table.from_pylist(good_rows(30), SCHEMA)
    source = table if kind == "arrow" else pd.DataFrame(table.to_pylist())
    found = tidewheel.score(TINY, source, tmp_path / "out", id="event", **signed)
    assert (found.state, found.succeeded) == ("Completed", 30)
    path = write_parquet(tmp_path / "a.parquet", good_rows(30))
    tidewheel.score(TINY, path, tmp_path / "file", id="event", **signed)
    for one, other in zip(rows_of(tmp_path / "out"), rows_of(tmp_path / "file"), strict=True):
        if kind == "arrow":  # pandas has float64
            assert {**one, "file": ""} == {**other, "file": ""}
        assert one["id"] == other["id"]


def test_the_job_is_known_and_a_time_ends_it(tmp_path: Path, signed: dict[str, Any]) -> None:
    path = write_parquet(tmp_path / "a.parquet", good_rows(30))
    found = tidewheel.score(TINY, path, tmp_path / "out", id="event", timeout=1e-9, **signed)
    assert found.state == "PartiallyCompleted"
    assert "was over" in found.reason
    (link,) = (tmp_path / "state" / "jobs").iterdir()
    assert str(link.readlink()) == found.job


def test_what_cannot_work_is_an_error_of_one_line(tmp_path: Path, signed: dict[str, Any]) -> None:
    path = write_parquet(tmp_path / "a.parquet", good_rows(5))
    for options, text in (
        ({"columns": ["wave"]}, "no column 'wave'"),
        ({"model": tmp_path / "a.parquet"}, "model "),
        ({"model": "served"}, "no model is served"),
        ({"trust": ()}, "is missing, the key that signs models"),
        ({"colour": "red"}, "--colour red: it is not an option"),
        ({"processes": 0}, "--processes 0: Expected `int` >= 1"),
    ):
        with pytest.raises(tidewheel.UsageError, match=text):
            tidewheel.score(TINY, path, tmp_path / "out", **{**signed, **options})
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.job").exists()
