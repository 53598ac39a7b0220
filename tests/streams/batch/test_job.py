"""A job: every row once, in order; what stops it, what it refuses, and that its sums agree."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import safetensors.numpy
from crc32c import crc32c

from streams.batch.jobs.job import Job
from streams.batch.jobs.manifest import busy_s, write_report
from streams.batch.jobs.submission import specify
from streams.batch.progress import Manifest, ShardRecord
from streams.contract.errors import TidewheelError, UsageError
from streams.learning.onnx_model import OnnxModel
from tests.rig.made_up.killed import Killed, killed_at, once_at
from tests.rig.made_up.models import plain, tiny
from tests.streams.batch.support import (
    WRITE,
    asked,
    good_rows,
    model,
    models,
    rows_of,
    submitted,
    write_lines,
    write_parquet,
)


@pytest.mark.parametrize("to", ["out", "out.jsonl"])
@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl"])
def test_every_input_row_is_in_the_output_once_in_its_order_with_the_devices_answer(
    tmp_path: Path, kind: str, to: str
) -> None:
    rows = good_rows(95)
    WRITE[kind](tmp_path / "in" / f"a.{kind}", rows[:40])
    WRITE[kind](tmp_path / "in" / f"b.{kind}", rows[40:])
    job = submitted(tmp_path, tmp_path / "in", to=to)
    found = job.run()
    answers = job.rows()
    assert found.state == "Completed"
    assert found.shards > 4
    assert [row["id"] for row in answers] == [row["event"] for row in rows]
    assert [row["row"] for row in answers] == [*range(40), *range(55)]
    engine = OnnxModel(tiny, model())
    for row, answer in zip(rows, answers, strict=True):
        segment = np.array(row["segment"], np.float32).reshape(1, *tiny.segment_shape)
        outputs = engine.run(segment)[0]
        assert answer["outputs"] == pytest.approx(outputs.tolist(), abs=1e-6)
        assert answer["class"] == tiny.classes[int(outputs.argmax())]
        assert answer["correct"] == (answer["class"] == row["label"])
        assert answer["model"] == model().model
        assert float(answer["site"]) == row["site"]
    assert found.correct == sum(row["correct"] for row in answers)


def test_the_manifest_beside_the_rows_has_sums_that_agree(tmp_path: Path) -> None:
    rows = good_rows(60)
    rows[3]["segment"] = None
    rows[4]["segment"] = [1.0]
    rows[5]["segment"][7] = float("nan")
    rows[6]["segment"][0] = None
    rows[7]["label"] = "flying"
    rows[8]["label"] = None
    rows[9]["event"] = None
    job = submitted(tmp_path, write_parquet(tmp_path / "a.parquet", rows))
    returned = job.run()
    found = Manifest.decode((job.output / "_manifest.json").read_bytes())
    assert found == returned
    assert found.errors == {
        "bad-label": 1, "missing": 1, "not-finite": 1, "null": 2, "wrong-width": 1
    }  # fmt: skip
    assert found.processed == found.succeeded + 6 == found.total == 60
    assert found.labelled == 53
    wrong = [row for row in job.rows() if row["error"]]
    assert [row["row"] for row in wrong] == [3, 4, 5, 6, 7, 9]
    assert all(row["reason"] and row["outputs"] is None for row in wrong)
    assert pq.read_table(job.output).num_rows == 60


def test_time_in_which_several_processes_score_counts_once() -> None:
    def record(ended_s: float, seconds: float) -> ShardRecord:
        return ShardRecord(
            state="Completed", attempts=1, seconds=seconds, ended_us=int(ended_s * 1e6)
        )

    side_by_side = [record(104, 4), record(105, 4), record(105.5, 2)]  # 100 to 105.5
    a_day_later = [record(86_400, 3)]
    assert busy_s(side_by_side) == pytest.approx(5.5)
    assert busy_s([*a_day_later, *side_by_side]) == pytest.approx(8.5)
    assert busy_s([]) == 0


def test_a_job_that_is_complete_is_not_scored_again(tmp_path: Path) -> None:
    job = submitted(tmp_path, write_parquet(tmp_path / "a.parquet", good_rows(40)))
    first = job.run()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    again = job.run()
    assert again.replace(ended_us=first.ended_us) == first
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize(
    ("rows", "said"),
    [(10, "1 of 1 shard, 1 attempt. "), (40, "2 of 2 shards, 2 attempts. ")],
)
def test_the_report_counts_shards_and_attempts(tmp_path: Path, rows: int, said: str) -> None:
    job = submitted(tmp_path, write_parquet(tmp_path / "a.parquet", good_rows(rows)))
    job.run()
    write_report(job.folder)
    assert f"Completed: {said}" in job.folder.report.read_text()


def test_a_stop_ends_between_shards_and_the_rest_is_scored_once(tmp_path: Path) -> None:
    job = submitted(tmp_path, write_parquet(tmp_path / "a.parquet", good_rows(100)))
    found = job.run(stopping=job.begun)
    assert found.state == job.folder.state().state == "Stopped"
    assert 0 < found.completed < found.shards
    assert len(job.rows()) == found.processed
    done = job.run()
    assert done.state == "Completed"
    assert done.attempts == done.shards  # none was scored twice
    assert [row["row"] for row in job.rows()] == list(range(100))


def test_an_output_file_that_is_gone_is_scored_again(tmp_path: Path) -> None:
    job = submitted(tmp_path, write_parquet(tmp_path / "a.parquet", good_rows(60)))
    job.run()
    before = job.rows()
    (job.output / "part-00001.parquet").unlink()
    assert job.run().state == "Completed"
    assert job.rows() == before


@pytest.mark.parametrize("change", ["other", "removed", "in place"])
def test_an_input_that_has_changed_is_refused_at_resume_by_name(
    tmp_path: Path, change: str
) -> None:
    first = write_parquet(tmp_path / "a.parquet", good_rows(40))
    second = write_parquet(tmp_path / "b.parquet", good_rows(40, 1))
    job = submitted(tmp_path, first, second)
    assert job.run(stopping=job.begun).state == "Stopped"
    if change == "other":
        write_parquet(second, good_rows(40, 2))
    elif change == "in place":  # as long as before, and its time is put back
        about, data = second.stat(), bytearray(second.read_bytes())
        data[len(data) // 2] ^= 1
        second.write_bytes(data)
        os.utime(second, ns=(about.st_atime_ns, about.st_mtime_ns))
        assert second.stat().st_mtime_ns == about.st_mtime_ns
    else:
        second.unlink()
    with pytest.raises(UsageError, match=r"b\.parquet"):
        job.run()


@pytest.mark.parametrize("kind", ["path", "URL"])
def test_an_input_is_hashed_again_at_resume_only_where_its_stamp_is_a_time_alone(
    tmp_path: Path, kind: str
) -> None:
    """The plan's sum is made wrong: a resume that hashes the file refuses it."""
    path = write_parquet(tmp_path / "a.parquet", good_rows(120))
    job = submitted(tmp_path, path if kind == "path" else path.as_uri())
    assert job.run(stopping=job.begun).state == "Stopped"
    plan = job.folder.plan()
    assert plan is not None
    job.folder.write_plan(plan.replace(files=[plan.files[0].replace(crc32c="00000000")]))
    if kind == "path":
        assert job.run().state == "Completed"
    else:
        with pytest.raises(UsageError, match=r"a\.parquet has changed since the job began"):
            job.run()


def test_before_the_sums_are_known_no_shard_is_done_and_other_input_is_planned_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed while shards are scored and their input is hashed; then the input has fewer rows."""
    path = write_parquet(tmp_path / "a.parquet", good_rows(60))
    job = submitted(tmp_path, path)
    with monkeypatch.context() as patched:
        patched.setattr(Job, "_settle", lambda *_: killed_at("here")("here"))
        with pytest.raises(Killed):
            job.run()
    assert len(list(job.output.glob("part-*"))) == 1
    plan = job.folder.plan()
    assert plan is not None
    assert not plan.summed
    assert not [*job.folder.done(plan, job.folder.specification())]
    write_parquet(path, good_rows(10, 1))
    assert job.run().state == "Completed"
    assert [row["id"] for row in job.rows()] == [row["event"] for row in good_rows(10, 1)]
    again = job.folder.plan()
    assert again is not None
    assert again.files[0].crc32c == f"{crc32c(path.read_bytes()):08x}"


def test_an_input_that_changes_during_the_job_fails_it_by_name(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", good_rows(60))
    before = path.read_bytes()
    job = submitted(tmp_path, path)
    change = once_at("score-step-5", lambda: write_parquet(path, good_rows(60, 1)))
    found = job.run(reached=change)
    assert found.state == "Failed"
    assert "a.parquet was changed" in found.reason
    assert "put it back before you resume, or start another job" in found.reason
    assert len(job.rows()) == found.processed == 20
    with pytest.raises(UsageError, match="has changed since the job began: put it back"):
        job.run()
    path.write_bytes(before)
    assert job.run().state == "Completed"


@pytest.mark.parametrize("processes", [1, 2])
def test_a_touched_file_with_the_same_content_is_taken_at_resume(
    tmp_path: Path, processes: int
) -> None:
    rows = good_rows(120)
    path = write_parquet(tmp_path / "a.parquet", rows)
    job = submitted(tmp_path, path)
    job.run(stopping=job.begun)
    path.write_bytes(path.read_bytes())
    assert job.run(processes=processes).state == "Completed"
    assert [row["id"] for row in job.rows()] == [row["event"] for row in rows]


@pytest.mark.parametrize(
    ("limit", "state"),
    [("3", "Failed"), ("4", "Completed"), ("9%", "Failed"), ("10%", "Completed")],
)
def test_more_errors_than_allowed_fail_the_job(tmp_path: Path, limit: str, state: str) -> None:
    rows = good_rows(40)
    for i in range(4):
        rows[i * 10]["segment"] = [0.0]
    job = submitted(tmp_path, write_parquet(tmp_path / "a.parquet", rows), max_errors=limit)
    found = job.run()
    assert found.state == state
    assert ("--max-errors" in found.reason) == (state == "Failed")
    assert job.run().state == state


def test_a_job_whose_rows_all_have_errors_fails(tmp_path: Path) -> None:
    rows = [{**row, "segment": [0.0]} for row in good_rows(40)]
    job = submitted(tmp_path, write_parquet(tmp_path / "a.parquet", rows))
    found = job.run()
    assert found.state == "Failed"
    assert found.reason == "no row has an answer: all 40 rows have errors (wrong-width 40)"
    assert [row["error"] for row in job.rows()] == ["wrong-width"] * 40


def test_an_output_file_that_another_has_replaced_is_noticed_before_the_job_is_complete(
    tmp_path: Path,
) -> None:
    job = submitted(tmp_path, write_parquet(tmp_path / "a.parquet", good_rows(60)))
    first = job.output / "part-00000.parquet"
    found = job.run(reached=once_at("score-step-5", lambda: first.write_bytes(b"x"), 3))
    assert found.state == "Failed"
    assert "part-00000.parquet" in found.reason
    assert job.run().state == "Completed"


def test_input_without_rows_is_complete(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").touch()
    lines = write_lines(tmp_path / "blank.jsonl", [b"", b"  "])
    job = submitted(tmp_path, tmp_path / "empty.jsonl", lines)
    found = job.run()
    assert (found.state, found.total, found.shards) == ("Completed", 0, 0)
    table = write_parquet(tmp_path / "none.parquet", [])
    assert submitted(tmp_path, table, to="other").run().state == "Completed"


def test_two_processes_do_not_work_on_one_job(tmp_path: Path) -> None:
    job = submitted(tmp_path, write_parquet(tmp_path / "a.parquet", good_rows(10)))
    assert not job.folder.running
    with job.folder.locked():
        assert job.folder.running
        with pytest.raises(UsageError, match="works on the job"), job.folder.locked():
            pass


def test_a_job_refuses_a_task_that_is_another_now(tmp_path: Path) -> None:
    job = submitted(tmp_path, write_parquet(tmp_path / "a.parquet", good_rows(10)))
    path = job.folder.folder / "specification.json"
    text = json.loads(path.read_text())
    text["task"]["version"] = 2
    path.write_text(json.dumps(text))
    with pytest.raises(UsageError, match="not what it was"):
        job.run()


def test_a_model_file_that_was_exchanged_is_refused(tmp_path: Path) -> None:
    job = submitted(tmp_path, write_parquet(tmp_path / "a.parquet", good_rows(10)))
    data = bytearray(job.folder.model.read_bytes())
    data[-1] ^= 1
    job.folder.model.write_bytes(data)
    with pytest.raises(UsageError, match=r"model\.twa"):
        job.run()


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"columns": ["wave"]}, "no column 'wave'; it has event, segment"),
    ({"columns": ["site"]}, "'site' is double, a segment must be a list"),
    ({"columns": ["a", "b"]}, "name one list column, or 40 columns"),
    ({"id": "site"}, "--id site is double"),
    ({"label_column": "truth"}, "no column 'truth'"),
    ({"keep": ["label", "label"]}, "the output has a column of that name"),
    ({"max_errors": "many"}, "--max-errors many"),
    ({"max_errors": "101%"}, "--max-errors 101%"),
    ({"expires_after": "0"}, "--expires-after 0"),
    ({"where": "site >"}, "--where site >"),
    ({"where": "speed > 1"}, 'column "speed"'),
    ({"where": "1; DROP TABLE rows"}, "--where"),
    ({"where": "site IN (SELECT * FROM read_csv('/etc/passwd'))"}, "--where"),
    ({"start": "2026-03-01"}, "need --time"),
    ({"start": "soon", "time": "site"}, "soon: write an event time"),
    ({"start": "2026-03-02", "until": "2026-03-01", "time": "event"}, "is not before"),
    ({"start": "2026-03-02", "time": "site"}, "--time site is double"),
    ({"start": "2026-03-02", "time": "when"}, "no column 'when'"),
    ({"rows": "readings", "columns": ["site"]}, "no column 'time'"),
    ({"rows": "readings", "keep": ["time"]}, "have that column anyway"),
    ({"rows": "readings", "time": "when", "columns": ["site", "site"]}, "no column 'when'"),
    ({"rows": "readings", "id": "machine", "columns": ["a", "b"]}, "no column"),
    ({"to": "postgresql://me:secret@db/x"}, "PGPASSWORD"),
    ({"to": "s3://bucket/out.delta"}, "a local folder or a database"),
    ({"to": "file:///tmp/scores"}, "write a local folder"),
    ({"output_format": "postgresql"}, "write postgresql://HOST/DATABASE"),
    ({"output_format": "word"}, "--output-format word"),
    ({"output_format": "bedrock"}, "needs Bedrock's lines"),
    ({"to": "postgresql://tester@127.0.0.1:1/x"}, "Connection refused"),
]


@pytest.mark.parametrize(("options", "text"), REFUSED)
def test_what_is_wrong_with_a_job_is_said_before_it_exists(
    tmp_path: Path, options: dict[str, Any], text: str
) -> None:
    path = write_parquet(tmp_path / "a.parquet", good_rows(10))
    with pytest.raises(TidewheelError, match=text):
        submitted(tmp_path, path, **options)
    assert list(tmp_path.iterdir()) == [path]


def test_an_output_that_exists_is_refused(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", good_rows(10))
    with pytest.raises(UsageError, match="exists"):
        submitted(tmp_path, path, to="a.parquet")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "theirs").touch()
    with pytest.raises(UsageError, match="exists"):
        submitted(tmp_path, path)


def test_files_are_found_in_folders_and_globs_once_each(tmp_path: Path) -> None:
    rows = good_rows(5)
    for name in ("in/b.parquet", "in/day=1/a.parquet", "in/_old.parquet", "in/.x/c.parquet"):
        write_parquet(tmp_path / name, rows)
    settings = asked(tmp_path, tmp_path / "in", tmp_path / "i*" / "*.parquet")
    inputs = specify(tiny, settings, models()).inputs
    found = [Path(file.path).relative_to(tmp_path) for file in inputs]
    names = [str(path) for path in found]
    assert names == ["in/b.parquet", "in/day=1/a.parquet", "in/_old.parquet"]


def test_files_of_several_formats_are_two_jobs(tmp_path: Path) -> None:
    write_parquet(tmp_path / "in" / "a.parquet", good_rows(5))
    write_lines(tmp_path / "in" / "b.jsonl", good_rows(5))
    with pytest.raises(UsageError, match="jsonl and parquet: make a job of each"):
        submitted(tmp_path, tmp_path / "in")


def test_a_personal_model_answers_as_on_its_device(tmp_path: Path) -> None:
    state = {name: value.numpy() for name, value in plain(8).state_dict().items()}
    weights = safetensors.numpy.save(
        state, {"base": model().model, "model": f"{model().model}.p3", "state": "{}"}
    )
    path = write_lines(tmp_path / "a.jsonl", good_rows(30))
    job = submitted(tmp_path, path, using=models()._replace(weights=weights))
    assert job.run().state == "Completed"
    engine = OnnxModel(tiny, model(), weights)
    for row, answer in zip(good_rows(30), rows_of(tmp_path / "out"), strict=True):
        segment = np.array(row["segment"], np.float32).reshape(1, *tiny.segment_shape)
        assert np.array(answer["outputs"], np.float32).tobytes() == engine.run(segment)[0].tobytes()
        assert answer["model"] == f"{model().model}.p3"
    job.folder.weights.write_bytes(weights + b" ")
    (tmp_path / "out" / "part-00000.parquet").unlink()
    with pytest.raises(UsageError, match="not that of the specification"):
        job.run()
