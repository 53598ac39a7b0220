"""Models that a user brings into a fleet that runs, and what a kill leaves."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import safetensors.torch
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from torch import nn

from compose.cli.models import import_model
from federation.bootstrap.initial_model import prepare
from federation.bootstrap.replacement import beside_the_teacher, import_candidate, next_teacher
from federation.registry import catalog
from federation.registry.registry import Registry
from streams.contract.artifact import GRAPH, WEIGHTS
from streams.contract.task import OnnxFile, Task
from streams.contract.window_metrics import digits
from streams.learning.learning import predict, to_safetensors
from streams.learning.onnx_model import OnnxModel
from streams.learning.teacher import teacher_of
from streams.runtime.files import ObjectStore
from tests.rig.made_up.killed import Killed
from tests.rig.made_up.model_files import FORMS, TINY, exported, few
from tests.rig.made_up.registries import offer
from tests.rig.unwrap import unwrap


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, first_models: Path) -> Path:
    """What one test has trained another need not train."""
    (found := tmp_path / "cache").symlink_to(first_models)
    return found


def test_a_better_model_waits_for_its_canary_and_a_worse_one_is_refused(
    tiny: Task, key: Ed25519PrivateKey, registry: Registry, tmp_path: Path, better: nn.Module
) -> None:
    path, base = tmp_path / "b.safetensors", unwrap(registry.serving())
    tiny = replace(tiny, may_trade_classes=True)  # the first one names one class nearly always
    path.write_bytes(to_safetensors(better.state_dict()))
    verdict, model = import_candidate(tiny, registry, key, path)
    assert verdict.promote, verdict.reason
    made = registry.load(unwrap(model))
    assert (made.manifest.base, made.manifest.run) == (base.model, None)
    assert made.manifest.source.startswith("b.safetensors sha256:")
    assert made.files[GRAPH] == base.files[GRAPH]
    OnnxModel(tiny, made)  # its self-test
    last = registry.decisions()[-1]
    assert (last.kind, last.model) == ("candidate", model)
    assert unwrap(registry.serving()).model == base.model
    torch.manual_seed(9)
    path.write_bytes(to_safetensors(tiny.build_model().state_dict()))
    before = registry.models()
    verdict, model = import_candidate(tiny, registry, key, path)
    assert (verdict.promote, model, registry.models()) == (False, None, before)


def test_one_that_comes_while_another_is_in_its_canary_is_said_to_depend_on_that(
    registry: Registry, key: Ed25519PrivateKey, tmp_path: Path, better: nn.Module,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    path = tmp_path / "b.safetensors"
    path.write_bytes(to_safetensors(better.state_dict()))

    def told() -> list[str]:
        import_model(TINY, path, tmp_path, str(registry.where))
        return capsys.readouterr().out.splitlines()

    [line] = told()
    assert "waits for its canary" in line
    first = unwrap(registry.desired().candidate)
    offer(registry, first, key)
    line, after = told()
    assert "waits for its canary" in line
    assert (
        after == f"{first.model} is in its canary before it; if it is released, this one is dropped"
    )


@pytest.mark.parametrize("point", ["import-step-1:1", "import-step-2:1"])
def test_killed_at_a_step_nothing_is_offered_and_the_import_can_be_repeated(
    tiny: Task, key: Ed25519PrivateKey, registry: Registry, tmp_path: Path, better: nn.Module,
    point: str,
) -> None:  # fmt: skip
    (tmp_path / "b.safetensors").write_bytes(to_safetensors(better.state_dict()))
    words = [sys.executable, "-m", "compose.cli.main", "models", "import"]
    words += [str(Path(TINY).resolve()), "b.safetensors", "--state", ".", "--registry", "registry"]
    environ = {**os.environ, "TIDEWHEEL_FAILPOINT": point, "PYTHONPATH": str(Path.cwd())}
    killed = subprocess.run(words, cwd=tmp_path, env=environ, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert [d.kind for d in registry.decisions()] == ["served"]
    del environ["TIDEWHEEL_FAILPOINT"]
    done = subprocess.run(words, cwd=tmp_path, env=environ, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    again = Registry(registry.where, tiny.name, tiny.version, [key.public_key()])
    assert again.decisions()[-1].model == done.stdout.split()[0]


@pytest.mark.parametrize("form", ["onnx", "script"])
def test_another_graph_is_a_candidate_and_another_teacher(
    tiny: Task, key: Ed25519PrivateKey, tmp_path: Path, better: nn.Module, form: str
) -> None:
    torch.manual_seed(3)
    first = exported(tiny, tiny.build_model(), tmp_path / "first.onnx")
    second = FORMS[form](tiny, better, tmp_path / "second.file")
    given = OnnxFile(first)
    task = replace(few(tiny), build_model=given, build_teacher=None, may_trade_classes=True)
    registry = Registry(tmp_path / "registry", task.name, task.version, [key.public_key()])
    prepare(TINY, task, registry, key, tmp_path / "cache")
    verdict, model = import_candidate(task, registry, key, second)
    assert verdict.promote, verdict.reason
    rows = np.random.default_rng(1).normal(0, 1, (4, *task.segment_shape)).astype(np.float32)
    answers = OnnxModel(task, registry.load(unwrap(model))).run(rows)
    np.testing.assert_allclose(answers, predict(better, rows), atol=1e-4)
    teacher = teacher_of(
        task, registry.add_teacher(next_teacher(task, registry, key, second)), "teacher"
    )
    np.testing.assert_allclose(teacher.score([rows])[0], predict(better, rows), atol=1e-4)


def negated(teacher: bytes) -> dict[str, torch.Tensor]:
    return {name: -tensor for name, tensor in safetensors.torch.load(teacher).items()}


def test_a_teacher_is_measured_beside_the_present_one_and_a_worse_one_is_warned_of(
    tiny: Task, key: Ed25519PrivateKey, registry: Registry, tmp_path: Path
) -> None:
    before, path = unwrap(registry.teacher()), tmp_path / "teacher.safetensors"
    path.write_bytes(before.files[WEIGHTS])
    same = next_teacher(tiny, registry, key, path)
    [line] = beside_the_teacher(tiny, registry, same)
    found = re.fullmatch(r"accuracy on held-out devices (0\.\d+) → (0\.\d+)", line)
    assert found is not None
    value = digits(before.manifest.metrics["teacher_held_out"])
    assert found.groups() == (value, value)
    path.write_bytes(to_safetensors(negated(before.files[WEIGHTS])))
    worse = next_teacher(tiny, registry, key, path)
    line, warning = beside_the_teacher(tiny, registry, worse)
    assert f"accuracy on held-out devices {value} → 0." in line
    assert warning.startswith(f"warning: it is worse than {before.model} there")


def test_where_a_teacher_cannot_be_measured_it_is_said(
    tiny: Task, key: Ed25519PrivateKey, registry: Registry, tmp_path: Path
) -> None:
    path = tmp_path / "teacher.safetensors"
    path.write_bytes(unwrap(registry.teacher()).files[WEIGHTS])
    data = next_teacher(tiny, registry, key, path)

    def elsewhere(_device: str) -> NoReturn:
        raise FileNotFoundError("held.csv")

    [line] = beside_the_teacher(replace(tiny, readings=elsewhere), registry, data)
    assert line.startswith("accuracy on held-out devices: not measured: held-0: ")
    assert "held.csv" in line
    [line] = beside_the_teacher(replace(tiny, devices=lambda: []), registry, data)
    assert line.endswith("not measured, there are no readings with labels for which it is defined")


class Dying:
    """A registry's store, in which the process is killed before one of its writes."""

    def __init__(self, store: ObjectStore, left: int) -> None:
        self._store, self._left = store, left

    def __getattr__(self, name: str) -> Any:
        if name in ("write", "create", "remove"):
            self._left -= 1
            if self._left < 0:
                raise Killed
        return getattr(self._store, name)


COMMANDS: dict[str, Callable[[Task, Registry, Ed25519PrivateKey, Path], object]] = {
    "prepare": lambda task, registry, key, path: prepare(
        TINY, task, registry, key, path.with_name("cache")
    ),
    "models import": import_candidate,
    "teacher": lambda task, registry, key, path: registry.add_teacher(
        next_teacher(task, registry, key, path)
    ),
}


@pytest.mark.parametrize("form", ["weights", "onnx", "script"])
@pytest.mark.parametrize("command", COMMANDS)
def test_killed_before_any_write_the_fleet_has_what_it_had_and_the_command_can_be_repeated(
    tiny: Task, key: Ed25519PrivateKey, tmp_path: Path, better: nn.Module, command: str, form: str
) -> None:
    path, first = tmp_path / "model.file", tmp_path / "first.safetensors"
    task = replace(few(tiny), build_teacher=None, may_trade_classes=True)
    if form == "weights":
        torch.manual_seed(3)
        first.write_bytes(to_safetensors(tiny.build_model().state_dict()))
        (path := path.with_suffix(".safetensors")).write_bytes(to_safetensors(better.state_dict()))
        if command == "teacher":
            whole = {f"model.{name}": t for name, t in better.state_dict().items()}
            path.write_bytes(to_safetensors(whole))
        task = replace(task, first_model=first)
    else:
        task = replace(task, build_model=OnnxFile(FORMS[form](tiny, tiny.build_model(), first)))
        FORMS[form](tiny, better, path)

    def opened() -> Registry:
        return Registry(tmp_path / "registry", task.name, task.version, [key.public_key()])

    if command != "prepare":
        prepare(TINY, task, opened(), key, tmp_path / "cache")
    had = [decision.model for decision in opened().decisions()]
    for number in count():
        dying = opened()
        dying.__dict__["store"] = Dying(dying.store, number)
        try:
            COMMANDS[command](task, dying, key, path)
        except Killed:
            assert [decision.model for decision in opened().decisions()] == had
            assert command == "prepare" or catalog.verify(opened()).problems == []
            continue
        break
    assert number == {"prepare": 5, "models import": 2, "teacher": 1}[command]
    assert catalog.verify(opened()).problems == []
    decided = [decision.model for decision in opened().decisions()]
    assert len(decided) == len(had) + (command != "teacher")
