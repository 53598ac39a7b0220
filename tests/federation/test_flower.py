"""Federated runs on real Flower processes and a real Kafka."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from compose.launcher import flower_processes
from federation.controller import run_tracker
from federation.controller.flwr_cli import Submission
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
    end_lease,
    journals,
    read,
    server_apps,
    wait_for,
)
from tests.rig.processes.stand_in_agent import StandInAgent

ROOT = Path(__file__).parents[2]


@pytest.fixture
def task_ref(tmp_path: Path) -> str:
    return own_task(tmp_path)


def not_a_number(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: np.full_like(value, np.nan) for name, value in weights.items()}


@dataclass
class DyingRuns:
    """Two devices; a ServerApp dies when it has written the checkpoint of round 2 of 3."""

    state: Path
    processes: FlowerStack
    submission: Submission

    def wait_until_dead(self) -> None:
        def dead() -> bool:
            last = [run[-1].kind for run in journals(self.state)]
            return last == ["aggregated"] and not server_apps(self.processes)

        wait_for("the ServerApp dies", dead, 120)
        end_lease(self.processes)

    def wait_until_gone_on_with(self) -> None:
        def ended() -> bool:
            return [run[-1].kind for run in journals(self.state)][1:] == ["finished"]

        wait_for("the run that goes on ends", ended, 120)


@pytest.fixture
def dying_runs(
    kafka: BrokerSettings, task_ref: str, tiny: Task, tmp_path: Path, sockets: Path
) -> Iterator[DyingRuns]:
    ensure_topics(kafka, topic_specs(tiny.id))
    devices = {name: sockets / f"{name}.sock" for name in ("d0", "d1")}
    with ExitStack() as stack:
        for name, path in devices.items():
            stack.enter_context(StandInAgent(tiny, name, path))
        env = {"TIDEWHEEL_KAFKA": kafka.bootstrap, "TIDEWHEEL_FAILPOINT": "round-step-4:2"}
        processes = stack.enter_context(FlowerStack(tmp_path, devices, env))
        config = {"task": task_ref, "state": str(tmp_path), "rounds": 3, "epochs": 6}
        submission = flower_processes.submission(tmp_path, processes.address, config)
        yield DyingRuns(tmp_path, processes, submission)
    assert processes.members() == []


def check_gone_on_with(
    state: Path, broker: BrokerSettings, task: Task, registry: Registry
) -> list[str]:
    """What came of both runs: it is as if one had done all of it, and each end is told once.
    Return their ids."""
    first, second = journals(state)
    runs = first[0].run, second[0].run
    trained = [[e.round for e in run if e.kind == "started"] for run in (first, second)]
    assert trained == [[1, 2], [3]]
    serving = candidate(registry)
    manifest = serving.manifest
    assert (manifest.run, manifest.number, manifest.round) == (runs[1], 2, 3)
    assert (manifest.admitted, manifest.refused) == (6, 0)
    told = [event for event in told_of_runs(broker, task) if event.run in runs]
    assert {e.resumed_from for e in told if e.run == runs[1]} == {runs[0]}
    ends = [event.reason for event in told if event.kind == "finished"]
    assert ends == [
        f"the run ended without a result (finished:failed); resumed by run {runs[1]}",
        "promoted",
    ]
    return [*runs]


def told_of_runs(broker: BrokerSettings, task: Task) -> list[RoundEvent]:
    return [RoundEvent.decode(message.value) for message in read(broker, task.id, ROUNDS)]


@pytest.mark.kafka
@pytest.mark.timeout(300)
def test_a_killed_server_app_is_gone_on_with_by_itself(
    kafka: BrokerSettings,
    task_ref: str,
    tiny: Task,
    registry: Registry,
    tmp_path: Path,
    dying_runs: DyingRuns,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    about = (task_ref, kafka, tmp_path, dying_runs.submission)
    settings = controller_settings(*about, schedule_s=0.0, runs_per_day=1)
    with controlled(settings):
        dying_runs.wait_until_dead()
        monkeypatch.setattr(run_tracker, "SILENCE_S", 1.0)  # each question costs a second of a core
        dying_runs.wait_until_gone_on_with()
    check_gone_on_with(tmp_path, kafka, tiny, registry)
