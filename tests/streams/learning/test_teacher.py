import dataclasses
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from streams.contract.errors import ArtifactError, ProcessorFailed, UsageError
from streams.contract.task import Task
from streams.learning.learning import build_teacher
from streams.learning.teacher import Teacher, TeacherFailed, load_teacher
from streams.runtime.trust import create_key
from streams.tasks import har, pedestrians
from tests.rig.made_up.tiny_task import task
from tests.rig.made_up.tiny_task import task as tiny_task
from tests.rig.processes.workers import reference, write_teacher

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


# --- the device that it runs on -------------------------------------------------------------------


@pytest.mark.parametrize("built_in", [tiny_task, har.task, pedestrians.task], ids=lambda t: t.name)
def test_the_path_to_a_device_changes_no_bit_of_an_answer(built_in: Task) -> None:
    torch.manual_seed(1)
    model = build_teacher(built_in).eval()
    teacher = Teacher(built_in, model, "1-x", threads=2, device="cpu")
    noise = np.random.default_rng(2)
    windows = [
        noise.normal(size=(rows, *built_in.segment_shape)).astype(np.float32)
        for rows in (1, 7, 7, 40, 300)
    ]
    scored = teacher.score(windows)
    for group in ([0, 1, 2, 3], [4]):  # as they share a forward pass of at most 256 rows
        longest = max(len(windows[i]) for i in group)
        padded = np.zeros((len(group), longest, *built_in.segment_shape), np.float32)
        mask = np.zeros((len(group), longest), bool)
        for row, i in enumerate(group):
            padded[row, : len(windows[i])] = windows[i]
            mask[row, : len(windows[i])] = True
        with torch.no_grad():
            plain = model(torch.from_numpy(padded), torch.from_numpy(mask)).numpy()
        for row, i in enumerate(group):
            found = scored[i]
            assert isinstance(found, np.ndarray)
            assert found.tobytes() == plain[row, : len(windows[i])].tobytes()


class Places(nn.Module):
    """Notes the devices of its weights and its input."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.seen: list[str] = []

    def forward(self, windows: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        self.seen += [str(one.device) for one in (self.weight, windows, mask)]
        return windows[..., 0, :1] * self.weight


def test_weights_windows_and_masks_are_on_the_teachers_device() -> None:
    here, away = Places(), Places()
    assert isinstance(Teacher(task, here, "1-x").score([window(2, 1)])[0], np.ndarray)
    assert here.seen == ["cpu"] * 3
    # torch's device "meta" computes shapes alone: a tensor that is left behind fails the pass
    result = Teacher(task, away, "1-x", device="meta").score([window(2, 1)])[0]
    assert away.seen == ["meta"] * 3
    assert "Cannot copy out of meta tensor" in str(result)  # outputs are asked back


class Breaks(nn.Module):
    """Raises `error` where a pass has at least `rows` rows."""

    def __init__(self, error: Exception, rows: int) -> None:
        super().__init__()
        self.error, self.rows = error, rows

    def forward(self, windows: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        if mask.numel() >= self.rows:
            raise self.error
        return windows[..., 0, 0, None].expand(-1, -1, 3)


@pytest.mark.parametrize("error", [torch.AcceleratorError("lost"), torch.OutOfMemoryError("lost")])
def test_a_device_that_fails_costs_no_window(error: Exception) -> None:
    teacher = Teacher(task, Breaks(error, rows=2), "1-x")
    with pytest.raises(ProcessorFailed, match="device cpu failed: lost: start again"):
        teacher.score([window(1, 1), window(2, 2)])


def test_windows_that_together_take_too_much_memory_are_scored_alone() -> None:
    teacher = Teacher(task, Breaks(torch.OutOfMemoryError("full"), rows=4), "1-x")
    results = teacher.score([window(3, 1), window(3, 2)])
    assert [r[0, 0] for r in results] == [1, 2]
