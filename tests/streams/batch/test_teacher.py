"""A teacher answers windows as the worker does, wherever shards and files end."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

from streams.batch.jobs.job_folder import Models
from streams.batch.progress import Manifest
from streams.contract.artifact import WEIGHTS, Artifact, pack, unpack
from streams.contract.artifact import Manifest as ArtifactManifest
from streams.contract.errors import UsageError
from streams.contract.task import Count, Session, Task, Window
from streams.learning.learning import to_safetensors
from streams.learning.teacher import Teacher, teacher_of
from tests.rig.made_up.models import tiny
from tests.streams.batch.support import KEY, SMALL, good_rows, submitted, write_lines
from tests.streams.batch.test_readings import (
    answered,
    moment,
    recording,
    stored,
    table_of,
    write_readings,
)

SECOND = 1_000_000
TOLERANCE = 1e-5  # of the outputs: the worker pads windows that share a forward pass


class Mixing(nn.Module):
    """A teacher whose answer to a segment depends on all segments of the window; it fails on a
    value of 99."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 3)

    def forward(self, windows: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        if (windows == 99).any():
            raise ValueError("too hot")
        means = windows.mean(dim=3) * mask[..., None]  # (batch, segments, channels)
        whole = means.sum(dim=1, keepdim=True) / mask.sum(dim=1)[:, None, None]
        both = torch.cat([means, whole.expand_as(means)], dim=2)
        return self.head(both)


task = dataclasses.replace(tiny, build_teacher=Mixing)


def teacher() -> tuple[Artifact, bytes]:
    torch.manual_seed(3)
    manifest = ArtifactManifest(
        kind="teacher", task="tiny", task_version=1, number=1, created_us=1, key="", files=[]
    )
    data = pack(manifest, {WEIGHTS: to_safetensors(Mixing().state_dict())}, KEY)
    found = unpack(data, [KEY.public_key()], task="tiny", task_version=1, kind="teacher")
    return found, data


def scored(
    place: Path, *inputs: Path, to: str = "out", most: int = 20, of: Task = task, **more: Any
) -> tuple[Manifest, list[dict[str, Any]]]:
    """The manifest and the rows of a job of the teacher."""
    options = {"id": None, "label_column": None, "keep": [], **more}
    job = submitted(place, *inputs, to=to, using=Models(*teacher()), task=of, **options)
    return job.run(task=of, shard_sizes={**SMALL, "shard_rows": most}), job.rows()


@pytest.mark.parametrize("window", [task.window, Session(1, longest_s=7), Count(7)])
def test_a_teacher_answers_a_recording_as_the_worker_has_stored_it(
    tmp_path: Path, window: Window
) -> None:
    own = dataclasses.replace(task, window=window)
    recordings = {f"d{n}": recording(f"d{n}", 400) for n in range(3)}
    path = write_readings(tmp_path / "a.parquet", table_of(recordings))
    found, rows = scored(tmp_path, path, of=own, rows="readings", label_column="label")
    assert found.state == "Completed", found.reason
    assert found.shards > 5
    events = {d: answered(d, one, tmp_path / d) for d, one in recordings.items()}
    kept = stored(events, tmp_path / "store", own, teacher_of(own, teacher()[0], "test"))
    assert len({row["window"] for row in kept}) > 3
    mine = {(row["device"], row["time"]): row for row in rows}
    assert len(mine) == len(kept) > 30
    for row in kept:
        answer = mine[row["device"], row["time"]]
        assert answer["outputs"] == pytest.approx(row["teacher"], abs=TOLERANCE)
        assert answer["model"] == row["teacher_model"] == teacher()[0].model


def dated(count: int) -> list[dict[str, Any]]:
    """Segments of three devices, a second apart: five of each are a window."""
    rows = good_rows(count)
    for i, row in enumerate(rows):
        row |= {"device": f"d{i % 3}", "time": moment((1000 + i // 3) * SECOND)}
    return rows


def expected(rows: list[dict[str, Any]]) -> list[list[float]]:
    """The teacher's outputs of each row, window by window."""
    scorer: Teacher = teacher_of(task, teacher()[0], "test")
    windows: dict[Any, list[int]] = {}
    for i, row in enumerate(rows):
        windows.setdefault((row["device"], int(row["time"].timestamp()) // 5), []).append(i)
    found: dict[int, list[float]] = {}
    for members in windows.values():
        segments = np.array([rows[i]["segment"] for i in members], np.float32)
        (outputs,) = scorer.score([segments.reshape(-1, *task.segment_shape)])
        assert isinstance(outputs, np.ndarray)
        found |= dict(zip(members, outputs.tolist(), strict=True))
    return [found[i] for i in range(len(rows))]


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_windows_are_whole_wherever_shards_and_files_end(tmp_path: Path, kind: str) -> None:
    rows = dated(101)
    for n, part in enumerate([rows[:40], rows[40:47], rows[47:]]):
        if kind == "parquet":
            pq.write_table(pa.Table.from_pylist(part), tmp_path / f"{n}.parquet", row_group_size=4)
        else:
            lines = [{**row, "time": row["time"].isoformat()} for row in part]
            write_lines(tmp_path / f"{n}.jsonl", lines)
    paths = [tmp_path / f"{n}.{kind}" for n in range(3)]
    wanted = expected(rows)
    results = []
    for size in (1, 13, 1000):
        found, answers = scored(
            tmp_path, *paths, to=f"out-{size}", most=size, id="event", time="time",
            device="device", keep=["site"],
        )  # fmt: skip
        assert found.state == "Completed", found.reason
        assert [row["id"] for row in answers] == [row["event"] for row in rows]
        for answer, outputs in zip(answers, wanted, strict=True):
            assert answer["outputs"] == pytest.approx(outputs, abs=TOLERANCE)
        assert {"site"} == answers[0].keys() & {"site", "time", "device"}
        results.append(answers)
    assert results[0] == results[1] == results[2]


def test_a_window_that_the_teacher_cannot_score_is_an_error_of_its_rows_alone(
    tmp_path: Path,
) -> None:
    rows = dated(45)
    rows[20]["segment"][3] = 99.0
    rows[30]["segment"] = None
    rows[31]["device"] = None
    path = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=7)
    options: Any = {"id": "event", "time": "time", "device": "device"}
    found, answers = scored(tmp_path, path, **options)
    assert found.state == "Completed"
    assert found.errors == {"missing": 1, "null": 1, "teacher-failed": 5}
    failed = [row for row in answers if row["error"] == "teacher-failed"]
    assert {row["reason"] for row in failed} == {"ValueError: too hot"}


def test_what_a_teacher_needs_is_said_before_the_job_exists(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist(dated(9)), path)
    for options, text in (
        ({}, "name --time and --device, or --as readings"),
        ({"time": "when"}, "no column 'when'"),
        ({"time": "time", "device": "pump"}, "no column 'pump'"),
    ):
        with pytest.raises(UsageError, match=text):
            scored(tmp_path, path, **options)
    with pytest.raises(UsageError, match="--device is for segments that a teacher answers"):
        submitted(tmp_path, path, device="device", keep=[])
