import dataclasses
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from streams.contract.errors import ArtifactError, UsageError
from streams.learning.teacher import Teacher, TeacherFailed, load_teacher
from streams.runtime.key_files import create_key
from tests.fakes.tiny_task import task
from tests.streams.worker.support import reference, write_teacher

SHAPE = task.segment_shape


class Marks(nn.Module):
    """Each row's first value, three times, times the number of rows that the mask shows."""

    calls = 0

    def forward(self, windows: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        if (windows[..., 0, 0] == 13).any():
            raise ValueError("thirteen\nis too many")
        size = mask.sum(dim=1, keepdim=True)
        first = windows[..., 0, 0] * size
        return torch.where(windows[..., 0, 0] == 99, torch.nan, first)[..., None].expand(-1, -1, 3)


def window(rows: int, value: float) -> np.ndarray:
    return np.full((rows, *SHAPE), value, np.float32)


def test_each_window_is_seen_whole_and_without_the_padding() -> None:
    model = Marks()
    teacher = Teacher(task, model, "1-x", rows_per_call=100)
    results = teacher.score([window(4, 2), window(1, 3), window(7, 5)])
    assert [r.tolist() for r in results] == [[[8.0] * 3] * 4, [[3.0] * 3], [[35.0] * 3] * 7]
    assert model.calls == 1


def test_a_call_has_no_more_rows_than_allowed_unless_one_window_has() -> None:
    model = Marks()
    teacher = Teacher(task, model, "1-x", rows_per_call=8)
    results = teacher.score([window(4, 1), window(4, 1), window(4, 1), window(20, 1)])
    assert [len(r) for r in results] == [4, 4, 4, 20]
    assert model.calls == 3


class Remembers(nn.Module):
    """Keeps its input between two layers, as a careless model does, and goes on only when as many
    passes are there as `together` wants."""

    seen: torch.Tensor

    def __init__(self, together: threading.Barrier) -> None:
        super().__init__()
        self.together = together

    def __deepcopy__(self, memo: object) -> "Remembers":
        return Remembers(self.together)  # a barrier is for all of them

    def forward(self, windows: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        self.seen = windows
        self.together.wait(30)
        return self.seen[..., 0, 0, None].expand(-1, -1, 3)


def test_threads_share_no_model_and_give_the_same_answers() -> None:
    windows = [window(3, value) for value in range(39)]
    alone = Teacher(task, Remembers(threading.Barrier(1)), "1-x", rows_per_call=3)
    three = Teacher(task, Remembers(threading.Barrier(3)), "1-x", rows_per_call=3, threads=3)
    found = three.score(windows)  # with fewer than three at once the barrier breaks
    assert [r.tolist() for r in found] == [r.tolist() for r in alone.score(windows)]
    assert [r[0, 0] for r in found] == list(range(39))


@pytest.mark.parametrize(("value", "text"), [(13, "ValueError: thirteen"), (99, "not finite")])
def test_only_the_window_that_fails_is_lost(value: float, text: str) -> None:
    results = Teacher(task, Marks(), "1-x").score([window(2, 1), window(2, value), window(3, 4)])
    assert isinstance(results[1], TeacherFailed)
    assert text in str(results[1])
    assert [len(results[i]) for i in (0, 2)] == [2, 3]


def test_a_wrong_shape_is_a_failure() -> None:
    class Short(nn.Module):
        def forward(self, windows: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            return windows[..., 0, :3].mean(dim=1)

    assert isinstance(Teacher(task, Short(), "1-x").score([window(2, 1)])[0], TeacherFailed)


def test_a_teacher_is_loaded_from_its_artifact(tmp_path: Path) -> None:
    path, key = write_teacher(task, tmp_path)
    teacher = load_teacher(task, path, [key])
    assert teacher.name.startswith("1-")
    assert teacher.score([window(2, 1)])[0].shape == (2, 3)


def test_an_unsound_teacher_is_refused(tmp_path: Path) -> None:
    path, key = write_teacher(task, tmp_path)
    create_key(tmp_path / "other.pem")
    with pytest.raises(ArtifactError, match="untrusted-key"):
        load_teacher(task, path, [tmp_path / "other.pub"])
    with pytest.raises(ArtifactError, match="does not fit"):
        load_teacher(dataclasses.replace(task, build_teacher=None), path, [key])
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ArtifactError, match="truncated"):
        load_teacher(task, path, [key])
    with pytest.raises(UsageError, match="cannot read the teacher"):
        load_teacher(task, tmp_path / "none", [key])


def test_the_teacher_brings_the_reference_for_drift(tmp_path: Path) -> None:
    path, key = write_teacher(task, tmp_path)
    assert load_teacher(task, path, [key]).reference is None  # made before there was any
    frozen = reference()
    key.unlink()
    (tmp_path / "key.pem").unlink()
    path, key = write_teacher(task, tmp_path, drift=frozen.encode())
    assert load_teacher(task, path, [key]).reference == frozen


def test_a_broken_reference_is_named(tmp_path: Path) -> None:
    path, key = write_teacher(task, tmp_path, drift=b'{"independent": 2}')
    with pytest.raises(ArtifactError, match=r"drift: the teacher .* Reference independent"):
        load_teacher(task, path, [key])
