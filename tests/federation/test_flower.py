"""Federated runs on real Flower processes and a real Kafka."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from compose.launcher import flower_processes
from federation.controller import run_tracker
from federation.controller.flwr_cli import Submission
from federation.controller.run_recovery import RunRecovery
from federation.controller.settings import ControllerSettings
from federation.registry.registry import Registry
from streams.contract.documents import RoundEvent
from streams.contract.task import Task
from streams.contract.topics import RELEASES, ROUNDS, topic_specs
from streams.kafka.admin import ensure_topics
from streams.kafka.settings import BrokerSettings
from tests.fakes.own_task import own_task
from tests.federation.flower_stack import (
    FlowerStack,
    candidate,
    controlled,
    end_lease,
    journals,
    read,
    server_apps,
    wait_for,
)
from tests.federation.stand_in_agent import StandInAgent

ROOT = Path(__file__).parents[2]


@pytest.fixture
def task_ref(tmp_path: Path) -> str:
    return own_task(tmp_path)


def not_a_number(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: np.full_like(value, np.nan) for name, value in weights.items()}


@pytest.mark.kafka
@pytest.mark.timeout(420)
def test_a_run_promotes_and_announces_what_sound_devices_learned(
    kafka: BrokerSettings,
    task_ref: str,
    tiny: Task,
    registry: Registry,
    tmp_path: Path,
    sockets: Path,
) -> None:
    ensure_topics(kafka, topic_specs(tiny.name))
    first = registry.models()
    devices = {name: sockets / f"{name}.sock" for name in ("d0", "d1", "d2")}
    with ExitStack() as stack:
        for name, path in devices.items():
            trick = not_a_number if name == "d2" else None
            stack.enter_context(StandInAgent(tiny, name, path, trick))
        env = {"TIDEWHEEL_KAFKA": kafka.bootstrap}
        processes = stack.enter_context(FlowerStack(tmp_path, devices, env))
        config = {"task": task_ref, "state": str(tmp_path), "minimum-nodes": 3, "rounds": 2}
        submission = flower_processes.submission(tmp_path, f"127.0.0.1:{processes.port}", config)
        run = submission.start({"epochs": 6}, tmp_path)
        wait_for("the run ends", lambda: submission.status(run).startswith("finished"), 300)
        assert submission.status(run) == "finished:completed", processes.log("superlink")
    assert processes.members() == []

    events = [RoundEvent.decode(message.value) for message in read(kafka, tiny.name, ROUNDS)]
    check_events([event for event in events if event.run == run])
    serving = candidate(registry)
    assert (serving.manifest.number, [serving.manifest.base]) == (2, first)
    told = [message.value or b"" for message in read(kafka, tiny.name, RELEASES)]
    assert not [text for text in told if serving.model.encode() in text]  # the controller's to tell
    (decision,) = [d for d in registry.decisions() if d.model == serving.model]
    assert (decision.kind, decision.run) == ("candidate", run)
    assert decision.evidence == serving.manifest.metrics


def check_events(events: list[RoundEvent]) -> None:
    """Two rounds of two sound devices and one that sends NaN, then the gate."""
    told = [(e.kind, e.round, e.device) for e in events if e.kind in ("admitted", "refused")]
    assert sorted(told) == [
        (kind, number, device)
        for kind, names in (("admitted", ("d0", "d1")), ("refused", ("d2",)))
        for number in (1, 2)
        for device in names
    ]
    assert {e.reason.partition(":")[0] for e in events if e.kind == "refused"} == {"not-finite"}
    kinds = [e.kind for e in events if e.kind not in ("admitted", "refused")]
    one_round = ["started", "aggregated", "evaluated"]
    assert kinds == [*one_round, *one_round, "evaluated", "promoted", "finished"]


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
    ensure_topics(kafka, topic_specs(tiny.name))
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
    return [RoundEvent.decode(message.value) for message in read(broker, task.name, ROUNDS)]


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
    settings = ControllerSettings(
        task_ref=task_ref,
        broker=kafka,
        state=tmp_path,
        registry=registry.folder,
        public_keys=(tmp_path / "keys" / "signing.pub",),
        signing_key=tmp_path / "keys" / "signing.pem",
        submission=dying_runs.submission,
        schedule_s=0.0,
        runs_per_day=1,
    )
    with controlled(settings):
        dying_runs.wait_until_dead()
        monkeypatch.setattr(run_tracker, "SILENCE_S", 1.0)  # each question costs a second of a core
        dying_runs.wait_until_gone_on_with()
    check_gone_on_with(tmp_path, kafka, tiny, registry)


def lineage(state: Path) -> tuple[list[str], list[str] | None]:
    """The runs that go on with each other, and those that there were before the last of them."""
    found = RunRecovery.decode((state / "controller" / "lineage.json").read_bytes())
    return found.runs, found.seen


@pytest.mark.kafka
@pytest.mark.timeout(400)
def test_controllers_that_die_at_each_step_of_resuming_a_run_leave_the_rest_to_the_next(
    kafka: BrokerSettings,
    task_ref: str,
    tiny: Task,
    registry: Registry,
    tmp_path: Path,
    dying_runs: DyingRuns,
) -> None:
    """Real processes, each killed by SIGKILL at the end of a later step; the last one lives. No
    ServerApp lives meanwhile: the run that goes on begins when all steps are done."""
    processes, flower = dying_runs.processes, dying_runs.submission
    command = [sys.executable, "-m", "compose.cli.main", "controller", task_ref]
    command += ["--state", str(tmp_path), "--kafka", kafka.bootstrap, "--runs-per-day", "0"]
    command += ["--superlink", processes.address]
    log = tmp_path / "controllers.log"

    def begin(**environ: str) -> "subprocess.Popen[bytes]":
        with log.open("ab") as file:
            return subprocess.Popen(command, cwd=ROOT, stderr=file, env={**os.environ, **environ})

    def dies_at(step: int) -> None:
        one = begin(TIDEWHEEL_FAILPOINT=f"resume-step-{step}:1")
        try:
            assert one.wait(90) == -signal.SIGKILL, log.read_text()[-2000:]
        finally:
            one.kill()
            one.wait()

    def told() -> list[tuple[str, str]]:
        found = told_of_runs(kafka, tiny)
        return [(e.run, e.kind) for e in found if e.kind in ("requested", "finished")]

    first = flower.start({}, tmp_path)
    dying_runs.wait_until_dead()
    processes.kill("superexec")
    dies_at(1)
    assert (lineage(tmp_path), [*flower.runs()]) == (([first], [first]), [first])
    dies_at(2)
    second, _ = flower.runs()
    assert lineage(tmp_path) == ([first], [first])
    dies_at(3)
    assert lineage(tmp_path) == ([first, second], None)
    assert told() == []
    dies_at(4)
    assert told() == [(second, "requested"), (first, "finished")]
    del processes.env["TIDEWHEEL_FAILPOINT"]
    processes.start(
        "superexec", flower_processes.superexec(tmp_path, processes.port, processes.env)
    )
    last = begin()
    try:
        dying_runs.wait_until_gone_on_with()
        kept = tmp_path / "controller" / "lineage.json"
        wait_for("nothing is left to do", lambda: not kept.exists(), 30)
        last.terminate()
        assert last.wait(20) == 0, log.read_text()[-2000:]
    finally:
        last.kill()
        last.wait()
    assert check_gone_on_with(tmp_path, kafka, tiny, registry) == [first, second]
    assert [*flower.runs()] == [second, first]
    decisions = [d for d in registry.decisions() if d.kind == "candidate"]
    assert [d.run for d in decisions] == [second]
