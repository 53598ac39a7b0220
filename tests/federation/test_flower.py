"""A federated run on real Flower processes and a real Kafka, whose ServerApp dies."""

from contextlib import ExitStack
from pathlib import Path

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
    end_lease,
    journals,
    read,
    server_apps,
)
from tests.rig.processes.polling import until
from tests.rig.processes.stand_in_agent import StandInAgent

ROOT = Path(__file__).parents[2]


@pytest.fixture
def task_ref(tmp_path: Path) -> str:
    return own_task(tmp_path)


def last(state: Path) -> list[str]:
    """What each run has said last."""
    return [run[-1].kind for run in journals(state)]


@pytest.mark.kafka
@pytest.mark.timeout(900)
def test_a_killed_server_app_is_gone_on_with_by_itself(
    kafka: BrokerSettings,
    task_ref: str,
    tiny: Task,
    registry: Registry,
    tmp_path: Path,
    sockets: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It dies when it has written the checkpoint of round 2 of 3. What comes of both runs is as if
    one had done all of it, and each end is told once."""
    ensure_topics(kafka, topic_specs(tiny.id))
    devices = {name: sockets / f"{name}.sock" for name in ("d0", "d1")}
    with ExitStack() as stack:
        for name, path in devices.items():
            stack.enter_context(StandInAgent(tiny, name, path))
        env = {"TIDEWHEEL_KAFKA": kafka.bootstrap, "TIDEWHEEL_FAILPOINT": "round-step-4:2"}
        processes = stack.enter_context(FlowerStack(tmp_path, devices, env))
        config = {"task": task_ref, "state": str(tmp_path), "rounds": 3, "epochs": 6}
        submission = flower_processes.submission(tmp_path, processes.address, config)
        about = (task_ref, kafka, tmp_path, submission)
        with controlled(controller_settings(*about, schedule_s=0.0, runs_per_day=1)):

            def dead() -> bool:
                return last(tmp_path) == ["aggregated"] and not server_apps(processes)

            until(dead, "the ServerApp dies", 120)
            end_lease(processes)
            monkeypatch.setattr(run_tracker, "SILENCE_S", 1.0)  # asking costs a second of a core
            until(lambda: last(tmp_path)[1:] == ["finished"], "the next run ends", 120)
    assert processes.members() == []
    first, second = journals(tmp_path)
    runs = first[0].run, second[0].run
    trained = [[e.round for e in run if e.kind == "started"] for run in (first, second)]
    assert trained == [[1, 2], [3]]
    manifest = candidate(registry).manifest
    assert (manifest.run, manifest.number, manifest.round) == (runs[1], 2, 3)
    assert (manifest.admitted, manifest.refused) == (6, 0)
    told = [RoundEvent.decode(message.value) for message in read(kafka, tiny.id, ROUNDS)]
    assert {e.resumed_from for e in told if e.run == runs[1]} == {runs[0]}
    assert [e.reason for e in told if e.kind == "finished" and e.run in runs] == [
        "the run ended without a result (finished:failed): see `flwr log RUN`; "
        f"resumed by run {runs[1]}",
        "promoted",
    ]
