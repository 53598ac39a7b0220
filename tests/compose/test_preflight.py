"""`tidewheel new` and `check`, as a new user types them."""

import io
import json
import os
import re
import signal
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Literal, NoReturn

import numpy as np
import pytest
import typer
from rich.console import Console

from compose.cli.tasks import check
from compose.launcher.commands import chosen_devices
from compose.preflight import (
    TaskReport,
    check_data,
    check_quickly,
    check_task,
    show,
    try_models,
)
from streams.contract.errors import TaskError, UsageError
from streams.contract.task import Metric, Training, load_task
from streams.segments.metric_trial import metric_findings
from streams.segments.survey import Survey
from tests.compose.cli import test_cli
from tests.compose.cli.test_cli import PROGRAM, ROOT, TINY, environ_in, installed
from tests.rig.processes.forks import executed
from tests.rig.processes.polling import until
from tests.rig.processes.running import start


def tidewheel(folder: Path, *words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = test_cli.tidewheel(*words, folder=folder, PYTHONPATH=str(ROOT))
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done


@pytest.mark.parametrize(
    ("kind", "segments"), [("classification", 99), ("regression", 99), ("events", 1000)]
)
def test_a_new_task_passes_the_check_as_it_is(tmp_path: Path, kind: str, segments: int) -> None:
    said = tidewheel(tmp_path, "new", "my-pumps", "--kind", kind).stdout
    assert "tidewheel check my_pumps.py:task" in said
    found = json.loads(tidewheel(tmp_path, "check", "my_pumps.py:task", "--json").stdout)
    assert [f for f in found["findings"] if f["level"] == "error" or kind == "events"] == []
    assert [one["role"] for one in found["surveys"]] == [
        "pilot", "lab", "fleet", "fleet", "fleet", "held-out",
    ]  # fmt: skip
    assert all(one["segments"] == segments and one["labelled"] > 50 for one in found["surveys"])
    model = found["model"]
    assert model["parameters"] > 0
    assert model["seconds"] > 0
    assert (model["factors"], model["int8_bytes"]) == (0, None)
    assert 4 * model["parameters"] <= model["float_bytes"]


def test_of_a_model_it_is_said_what_learns_what_a_round_sends_and_what_int_8_saves() -> None:
    task = load_task("streams/tasks/har.py:task")
    whole = try_models(task)
    small = Training(train_only=("11",), lora={"3": 1}, payload="float32")
    part = try_models(replace(task, quantize="int8", training=small))
    head = sum(p.numel() for p in task.build_model()[11].parameters())
    assert part.parameters == whole.parameters
    assert part.learned == head + part.factors
    assert 0 < part.factors < whole.learned
    assert part.round_bytes == 4 * part.learned
    assert whole.round_bytes == 2 * whole.learned  # float16
    assert part.int8_bytes is not None
    assert part.int8_bytes < part.float_bytes == whole.float_bytes


@pytest.mark.parametrize(
    ("counts", "expected"), [((30, 12, 20), "12 to 30 readings"), ((9, 9), "9 readings")]
)
def test_how_many_readings_of_live_sensors_were_looked_at_is_said(
    counts: tuple[int, ...], expected: str
) -> None:
    surveys = [Survey(f"d{n}", "fleet", readings=n, read_s=10.0) for n in counts]
    screen = Console(file=io.StringIO(), width=200)
    show(TaskReport("t", surveys, [], None, None, None), screen)
    said = screen.file.getvalue()  # type: ignore[attr-defined]
    assert f"sensors of the fleet were read for 10 s each: {expected}" in said


def test_the_time_between_readings_has_a_unit_that_can_be_read() -> None:
    periods = {"ms": 0.0025, "s": 0.715516, "h": 2_114_220.0}
    made = [Survey(name, "fleet", readings=9, period_s=s) for name, s in periods.items()]
    screen = Console(file=io.StringIO(), width=200)
    show(TaskReport("t", made, [], None, None, None), screen)
    said = screen.file.getvalue()  # type: ignore[attr-defined]
    for every in (" 0.0025 s ", " 0.716 s ", " 587 h "):
        assert every in said


def test_up_takes_six_devices_or_all_of_a_smaller_fleet(tmp_path: Path) -> None:
    tidewheel(tmp_path, "new", "base")
    small = load_task(f"{tmp_path / 'base.py'}:task")
    assert chosen_devices(small, None) == ["device-1", "device-2", "device-3"]
    with pytest.raises(UsageError, match="--devices 6: task 'base' has 1 to 3 in its fleet"):
        chosen_devices(small, 6)
    assert len(chosen_devices(load_task("streams/tasks/har.py:task"), None)) == 6


def test_a_file_that_is_there_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("precious")
    assert "exists already" in tidewheel(tmp_path, "new", "mine", code=2).stderr
    assert (tmp_path / "mine.py").read_text() == "precious"


def changed(folder: Path, old: str, new: str) -> str:
    tidewheel(folder, "new", "mine")
    path = folder / "mine.py"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    return "mine.py:task"


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ('"fleet")', '"flet")', "role 'flet' must be one of pilot, lab, fleet, held-out"),
        ('"device-{n}"', '"device-1"', "device 'device-1' is listed twice"),
    ],
)
def test_a_wrong_list_of_devices_is_one_line(
    tmp_path: Path, old: str, new: str, expected: str
) -> None:
    reference = changed(tmp_path, old, new)
    assert expected in tidewheel(tmp_path, "check", reference, code=2).stderr


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("(x, y), ", "(x, y, 0.0), ", "another number of values than the task has channels"),
        ("i * 100_000", "i * 3_600_000_000", "set rate_hz=0.000277778"),
        ("nn.Linear(32 * 16, 2)", "nn.Linear(32 * 16, 3)", "it must give (2, 2)"),
    ],
)
def test_what_cannot_work_ends_with_1_and_advice(
    tmp_path: Path, old: str, new: str, expected: str
) -> None:
    reference = changed(tmp_path, old, new)
    assert expected in tidewheel(tmp_path, "check", reference, code=1).stdout


def bug(_outputs: np.ndarray, _labels: np.ndarray) -> float:
    raise ValueError("my metric bug")


@pytest.mark.parametrize("source", ["recorded", "live"])
def test_an_own_metric_that_fails_is_named_before_anything_is_trained(
    source: Literal["recorded", "live"],
) -> None:
    task = replace(load_task(TINY), source=source, metric=Metric("cost", bug))
    says = r"metric cost fails: ValueError: my metric bug, .*test_preflight\.py:\d+"
    with pytest.raises(TaskError, match=says):
        check_quickly(task, lambda _text: None)
    if source == "recorded":
        (found,) = [f for f in check_data(task).findings if f.level == "error"]
        assert (found.where, found.advice) == ("metric", "fix `metric` in the task file")
        assert re.fullmatch(says, found.text)


def test_an_own_metric_without_a_value_for_made_up_answers_is_a_warning() -> None:
    task = replace(load_task(TINY), metric=Metric("cost", lambda _out, _true: float("nan")))
    said: list[str] = []
    check_quickly(task, said.append)
    assert [line for line in said if "metric cost is nan for 256 made-up answers" in line] == said
    assert len(said) == 1


@pytest.mark.parametrize("kind", ["classes", "targets"])
def test_a_sound_metric_of_positive_numbers_is_not_found_fault_with(kind: str) -> None:
    def of(outputs: np.ndarray, labels: np.ndarray) -> float:
        assert kind == "classes" or (min(outputs.min(), labels.min()) > 0 and labels.max() < 1)
        assert len(np.unique(labels)) >= 2
        return float(np.log1p(labels).mean())

    task = replace(load_task(TINY), metric=Metric("cost", of))
    if kind == "targets":
        task = replace(task, classes=(), targets=("speed", "load"))
    assert metric_findings(task) == []


@pytest.mark.parametrize("field", ["build_model", "build_teacher"])
def test_a_model_that_fails_is_named_with_the_line(field: str) -> None:
    def fails() -> NoReturn:
        return missing()  # type: ignore[name-defined,no-any-return]  # noqa: F821

    task = replace(load_task(TINY), **{field: fails})  # type: ignore[arg-type]
    found = check_task(task).findings[0]
    assert (found.level, found.where) == ("error", field)
    assert found.advice == f"fix `{field}` in the task file"
    assert f"{field} fails on a (2, " in found.text
    assert found.text.endswith(f", {__file__}:{fails.__code__.co_firstlineno + 1}")


def test_a_layer_that_fails_is_named_with_the_line_that_calls_it() -> None:
    import torch

    class Deep(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.linear(x, torch.zeros(3, 999))

    text = check_task(replace(load_task(TINY), build_model=Deep)).findings[0].text
    assert text.endswith(f", {__file__}:{Deep.forward.__code__.co_firstlineno + 1}")


def test_a_file_that_needs_torch_when_a_device_imports_it_is_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = "from torch import nn"
    changed(tmp_path, "import random\n", f"import random\n{line}\n")
    path = tmp_path / "mine.py"
    at = path.read_text().splitlines().index(line) + 1
    with executed(), pytest.raises(typer.Exit) as ended:  # a forked process has torch
        check(f"{path}:task")
    assert ended.value.exit_code == 1
    assert f"importing the file needs torch ({path}:{at})" in capsys.readouterr().out


def test_a_module_beside_the_task_is_found_by_pythonpath_alone(tmp_path: Path) -> None:
    (tmp_path / "features.py").touch()
    (tmp_path / "mine.py").write_text(
        "import features\n" + Path(TINY.removesuffix(":task")).read_text()
    )
    alone = installed("schema", "mine.py:task", folder=tmp_path)
    assert (alone.returncode, alone.stdout) == (2, "")
    assert alone.stderr.endswith("No module named 'features'\n")
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    assert installed("schema", "mine.py:task", folder=tmp_path, PYTHONPATH=path).returncode == 0


def test_readings_that_fail_later_than_the_check_looks_are_one_line(tmp_path: Path) -> None:
    late = "yield Reading(i * 100_000 if i < 3000 else None // 1, "
    reference = changed(tmp_path, "yield Reading(i * 100_000, ", late)
    tidewheel(tmp_path, "check", reference)
    said = tidewheel(tmp_path, "prepare", reference, code=2).stderr.splitlines()
    rows = (tmp_path / "mine.py").read_text().splitlines()
    at = next(n for n, row in enumerate(rows, 1) if late in row)
    assert len(said) == 1
    assert "readings() fails: TypeError: unsupported operand" in said[0]
    assert f"(reading 3001, {tmp_path / 'mine.py'}:{at})" in said[0]


def test_prepare_begins_with_the_fast_part(tmp_path: Path) -> None:
    reference = changed(tmp_path, "i * 100_000", "i * 3_600_000_000")
    done = tidewheel(tmp_path, "prepare", reference, code=2)
    assert "readings come every 3600 s: set rate_hz=0.000277778" in done.stderr
    assert not (tmp_path / ".tidewheel").exists()


def test_a_task_that_was_changed_is_told_that_its_models_are_of_before(tmp_path: Path) -> None:
    text = (
        "from dataclasses import replace\nfrom tidewheel import load_task\n"
        f"tiny = load_task({TINY!r})\n"
        "training = replace(tiny.training, central_epochs=1)\n"
        "task = replace(tiny, training=training)\n"
    )
    (tmp_path / "mine.py").write_text(text)
    first = tidewheel(tmp_path, "prepare", "mine.py:task")
    assert "has changed since" not in first.stdout
    again = tidewheel(tmp_path, "prepare", "mine.py:task")
    assert "has changed since" not in again.stdout
    (tmp_path / "mine.py").write_text(text.replace("central_epochs=1", "central_epochs=2"))
    changed = tidewheel(tmp_path, "prepare", "mine.py:task")
    assert "warning   the task's code or data has changed since its first model" in changed.stdout


SLOW = """
import time
from dataclasses import replace
from pathlib import Path
from tidewheel import Device, load_task

def readings(device):
    Path(f"read-{{device}}").touch()
    time.sleep(60)
    yield 0, (0.0, 1.0)

devices = [Device(f"d{{n}}", "fleet") for n in range(40)]
task = replace(load_task("{tiny}"), source="{source}", readings=readings, devices=lambda: devices)
"""


@pytest.mark.parametrize(("source", "at_once"), [("recorded", 1), ("live", 32)])
def test_ctrl_c_ends_check_without_reading_another_device(
    tmp_path: Path, source: str, at_once: int
) -> None:
    (tmp_path / "slow.py").write_text(SLOW.format(tiny=TINY, source=source))
    process = start(
        [PROGRAM, "check", "slow.py:task"], tmp_path / "stdout", environ_in(tmp_path, {}),
        err=tmp_path / "stderr", cwd=tmp_path, session=False,
    )  # fmt: skip
    until(lambda: len(list(tmp_path.glob("read-*"))) == at_once, "devices are read")
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130, (tmp_path / "stderr").read_text()
    assert len(list(tmp_path.glob("read-*"))) == at_once
