"""Flower's own `flwr` command from the project's root, as a user calls it: real processes."""

import json
import os
import subprocess
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from compose.launcher import flower_processes
from federation.controller import run_tracker
from federation.registry.registry import Registry
from streams.contract.documents import RoundEvent
from streams.contract.task import Task
from streams.contract.topics import ROUNDS, topic_specs
from streams.kafka.admin import ensure_topics
from streams.kafka.settings import BrokerSettings
from tests.rig.made_up.own_task import own_task
from tests.rig.made_up.registries import controller_settings
from tests.rig.processes.flower import (
    FlowerStack,
    candidate,
    controlled,
    journals,
    read,
    server_apps,
)
from tests.rig.processes.polling import until
from tests.rig.processes.stand_in_agent import StandInAgent

ROOT = Path(__file__).parents[3]
QUIET_S = 2.0


@pytest.fixture
def task_ref(tmp_path: Path) -> str:
    return own_task(tmp_path)


def not_a_number(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: np.full_like(value, np.nan) for name, value in weights.items()}


def flwr(state: Path) -> Callable[..., str]:
    """Calls the command; what it prints."""

    def call(*words: str) -> str:
        done = subprocess.run(
            [flower_processes.program("flwr"), *words],
            cwd=ROOT,
            env={**os.environ, **flower_processes.environment(state / "flower" / "home")},
            capture_output=True,
            text=True,
            timeout=180,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return call


def app_of(state: Path) -> str:
    """The folder that a controller writes for `flwr run`."""
    return str(state / "flower" / "app")


def settings_of(state: Path, kafka: BrokerSettings, **more: str | int) -> str:
    """For --run-config, as one types it."""
    config: dict[str, str | int] = {
        "task": f"{state / 'task.py'}:task", "state": str(state), "kafka": kafka.bootstrap
    }  # fmt: skip
    return " ".join(f"{name}={json.dumps(value)}" for name, value in {**config, **more}.items())


@pytest.mark.kafka
@pytest.mark.timeout(1260)
def test_runs_by_hand_obey_the_same_rules_and_what_is_stopped_stays_so(
    kafka: BrokerSettings,
    task_ref: str,
    tiny: Task,
    registry: Registry,
    tmp_path: Path,
    sockets: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(run_tracker, "SILENCE_S", QUIET_S)
    ensure_topics(kafka, topic_specs(tiny.id))
    devices = {name: sockets / f"{name}.sock" for name in ("d0", "d1", "d2")}
    with ExitStack() as stack:
        for name, path in devices.items():
            trick = not_a_number if name == "d2" else None
            stack.enter_context(StandInAgent(tiny, name, path, trick))
        env = {"TIDEWHEEL_KAFKA": kafka.bootstrap}
        processes = stack.enter_context(FlowerStack(tmp_path, devices, env))
        submission = flower_processes.submission(tmp_path, processes.address, {"task": task_ref})
        settings = controller_settings(task_ref, kafka, tmp_path, submission, runs_per_day=0)
        stack.enter_context(controlled(settings))
        until((tmp_path / "flower" / "app" / "README.md").exists, "the controller leads", 60)
        call = flwr(tmp_path)
        check_streamed(call, tmp_path, kafka)
        check_stopped(call, tmp_path, kafka, processes, tiny.id)
        assert len(submission.runs()) == 2
    assert processes.members() == []
    serving = candidate(registry)
    assert serving.manifest.number == 2


def check_streamed(call: Callable[..., str], state: Path, kafka: BrokerSettings) -> None:
    """`flwr run APP --stream` tells how it went; one device's NaNs are refused, the gate opens."""
    before = sorted(path.name for path in ROOT.iterdir())
    config = {"rounds": 1, "minimum-nodes": 3, "epochs": 6}
    said = call(
        "run", app_of(state), "--stream", "--run-config", settings_of(state, kafka, **config)
    )
    assert "promoted: accuracy on devices" in said
    assert sorted(path.name for path in ROOT.iterdir()) == before
    [events] = journals(state)
    run = events[0].run
    told = sorted((e.kind, e.device) for e in events if e.kind in ("admitted", "refused"))
    assert told == [("admitted", "d0"), ("admitted", "d1"), ("refused", "d2")]
    kinds = [event.kind for event in events if event.kind not in ("admitted", "refused")]
    assert kinds == ["started", "aggregated", "evaluated", "evaluated", "promoted", "finished"]
    assert run in call("list")
    assert "promoted: accuracy on devices" in call("log", run, "--show")


def check_stopped(
    call: Callable[..., str],
    state: Path,
    kafka: BrokerSettings,
    processes: FlowerStack,
    task: str,
) -> None:
    """`flwr stop` ends a run's ServerApp, and the controller lets it rest."""
    config = {"rounds": 50, "minimum-nodes": 3, "seed": 7}
    call("run", app_of(state), "--run-config", settings_of(state, kafka, **config))
    until(lambda: len(journals(state)) == 2, "it begins", 90)
    run = journals(state)[1][0].run
    call("stop", run)

    def told() -> list[str]:
        events = [RoundEvent.decode(message.value) for message in read(kafka, task, ROUNDS)]
        return [event.reason for event in events if (event.run, event.kind) == (run, "finished")]

    until(lambda: bool(told()), "the controller tells of it", 90)
    until(lambda: not server_apps(processes), "its ServerApp ends", 60)
    assert told() == ["stopped by a user (finished:stopped)"]
    assert not (state / "controller" / "lineage.json").exists()
