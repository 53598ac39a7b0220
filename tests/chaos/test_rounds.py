"""What takes part in a federated run is killed by SIGKILL while rounds go on: the run ends by
itself, with all rounds done and one candidate.

Real Flower processes and a real Kafka; the rig starts again what a supervisor would. Nothing is
shortened: leases end. test_up.py kills the other processes.
"""

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from compose.launcher import flower_processes
from federation.controller.flwr_cli import Submission
from federation.registry.registry import Registry
from streams.contract.documents import RoundEvent
from streams.contract.task import Task
from streams.contract.topics import topic_specs
from streams.contract.work import WorkReply, WorkRequest
from streams.kafka.admin import ensure_topics
from streams.kafka.settings import BrokerSettings
from tests.federation.conftest import key, registry, sockets, tiny
from tests.rig.made_up.own_task import own_task
from tests.rig.made_up.registries import controller_settings
from tests.rig.processes.flower import (
    FlowerStack,
    controlled,
    end_lease,
    journals,
    server_apps,
)
from tests.rig.processes.polling import until
from tests.rig.processes.stand_in_agent import StandInAgent

__all__ = ["key", "registry", "sockets", "tiny"]
ROUNDS = 3
DEVICES = ("d0", "d1", "d2")

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(1200)]


class HeldAgent(StandInAgent):
    """Answers a training of round `held` only when it may."""

    held = 0
    may = threading.Event()

    def _work(self, request: WorkRequest, body: bytes) -> tuple[WorkReply, bytes]:
        if request.op == "train" and request.round == self.held:
            assert self.may.wait(120)
        return super()._work(request, body)

    def at_work(self) -> bool:
        return any(r.op == "train" and r.round == self.held for r in self.requests)


@dataclass
class Rig:
    state: Path
    task_ref: str
    registry: Registry
    processes: FlowerStack
    submission: Submission
    agents: list[HeldAgent]
    may: threading.Event

    def hold(self, number: int) -> None:
        """Let devices answer the training of a round only after self.may."""
        for agent in self.agents:
            agent.held, agent.may = number, self.may

    def controller(self, kafka: BrokerSettings) -> AbstractContextManager[None]:
        """One that starts a run at once."""
        about = (self.task_ref, kafka, self.state, self.submission)
        return controlled(controller_settings(*about, schedule_s=0.0, runs_per_day=1))

    def wait_until_held(self) -> None:
        until(lambda: all(a.at_work() for a in self.agents), "they are at work", 120)

    def wait_for_verdict(self, runs: int) -> list[list[RoundEvent]]:
        """So many runs, the last of which has come to its end; the events of each."""

        def ended() -> bool:
            found = journals(self.state)
            return len(found) == runs and found[-1][-1].kind == "finished"

        until(ended, "the run comes to a verdict", 150)
        return journals(self.state)


@pytest.fixture
def task_ref(tmp_path: Path) -> str:
    return own_task(tmp_path)


@pytest.fixture
def failpoint(request: pytest.FixtureRequest) -> dict[str, str]:
    """More of the environment of ServerApps."""
    step = getattr(request, "param", None)
    return {"TIDEWHEEL_FAILPOINT": f"round-step-{step}:1"} if step else {}


@pytest.fixture
def rig(
    failpoint: dict[str, str],
    kafka: BrokerSettings,
    task_ref: str,
    tiny: Task,
    registry: Registry,
    tmp_path: Path,
    sockets: Path,
) -> Iterator[Rig]:
    """Three devices and a controller that starts one run and takes it up when it dies."""
    ensure_topics(kafka, topic_specs(tiny.id))
    devices = {name: sockets / f"{name}.sock" for name in DEVICES}
    may = threading.Event()
    with ExitStack() as stack:
        agents = [HeldAgent(tiny, name, path) for name, path in devices.items()]
        for agent in agents:
            stack.enter_context(agent)
        env = {"TIDEWHEEL_KAFKA": kafka.bootstrap, **failpoint}
        processes = stack.enter_context(FlowerStack(tmp_path, devices, env))
        stack.callback(may.set)
        config = {"task": task_ref, "state": str(tmp_path), "rounds": ROUNDS, "epochs": 6}
        submission = flower_processes.submission(
            tmp_path, processes.address, {**config, "minimum-nodes": len(DEVICES)}
        )
        yield Rig(tmp_path, task_ref, registry, processes, submission, agents, may)
    assert processes.members() == []


def admitted(*runs: list[RoundEvent]) -> list[tuple[int, str]]:
    return sorted((e.round, e.device) for run in runs for e in run if e.kind == "admitted")


def done(*runs: list[RoundEvent]) -> list[int]:
    return [event.round for run in runs for event in run if event.kind == "aggregated"]


def all_of(*numbers: int) -> list[tuple[int, str]]:
    return [(number, device) for number in numbers for device in DEVICES]


def test_a_superlink_that_is_killed_in_a_round(rig: Rig, kafka: BrokerSettings) -> None:
    """It has everything in its database, and the others wait for it."""
    rig.hold(2)
    with rig.controller(kafka):
        rig.wait_until_held()
        rig.processes.kill("superlink")
        rig.processes.start_superlink()
        rig.may.set()
        [run] = rig.wait_for_verdict(1)
    assert done(run) == [1, 2, 3]
    assert admitted(run) == all_of(1, 2, 3)
    assert run[-2].kind == "promoted"


@pytest.mark.parametrize("failpoint", range(1, 9), indirect=True)
def test_a_server_app_that_dies_at_a_step(
    rig: Rig, kafka: BrokerSettings, failpoint: dict[str, str]
) -> None:
    """A second run continues it; its result is that of an undisturbed run."""
    first = failpoint["TIDEWHEEL_FAILPOINT"] == "round-step-1:1"
    processes = rig.processes
    with rig.controller(kafka):
        until(lambda: bool(server_apps(processes)), "a ServerApp lives", 120)
        until(lambda: not server_apps(processes), "it dies at its step", 120)
        told = [run[-1].kind for run in journals(rig.state)]  # nothing before the first round
        assert len(told) == (not first)
        assert "finished" not in told
        processes.kill("superexec")  # the next ServerApp has no failpoint
        del processes.env["TIDEWHEEL_FAILPOINT"]
        processes.start(
            "superexec", flower_processes.superexec(rig.state, processes.port, processes.env)
        )
        end_lease(processes)
        runs = rig.wait_for_verdict(1 + (not first))
    assert sorted(set(done(*runs))) == [1, 2, 3]
    assert runs[-1][-2].kind == "promoted"
    assert set(admitted(*runs)) == set(all_of(1, 2, 3))
    decisions = [d for d in rig.registry.decisions() if d.kind == "candidate"]
    assert len(decisions) == 1
    assert decisions[0].run in {run[0].run for run in runs}
