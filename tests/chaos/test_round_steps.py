"""A ServerApp that kills itself at the end of each numbered step of a run: another run goes on, and
comes to what an undisturbed one would have: all rounds, one candidate. Part of `make chaos`."""

from contextlib import ExitStack

import pytest

from compose.launcher import flower_processes
from streams.kafka.settings import BrokerSettings
from tests.chaos.test_rounds import Rig, admitted, all_of, done, rig, start, task_ref
from tests.federation.conftest import key, pilot_cache, registry, sockets, tiny
from tests.rig.processes.flower import end_lease, journals, server_apps, wait_for

__all__ = ["key", "pilot_cache", "registry", "rig", "sockets", "task_ref", "tiny"]

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(400)]


@pytest.fixture
def step(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture
def failpoint(step: int) -> dict[str, str]:
    return {"TIDEWHEEL_FAILPOINT": f"round-step-{step}:1"}


@pytest.mark.parametrize("step", range(1, 9), indirect=True)
def test_a_server_app_that_dies_at_a_step(rig: Rig, kafka: BrokerSettings, step: int) -> None:
    processes = rig.processes
    with ExitStack() as stack:
        start(rig, kafka, stack)
        wait_for("a ServerApp lives", lambda: bool(server_apps(processes)), 120)
        wait_for("it dies at its step", lambda: not server_apps(processes), 120)
        told = [run[-1].kind for run in journals(rig.state)]  # nothing before the first round
        assert len(told) == (step > 1)
        assert "finished" not in told
        processes.kill("superexec")  # the next ServerApp has no failpoint
        del processes.env["TIDEWHEEL_FAILPOINT"]
        processes.start(
            "superexec", flower_processes.superexec(rig.state, processes.port, processes.env)
        )
        end_lease(processes)
        runs = rig.wait_for_verdict(1 + (step > 1))
    assert sorted(set(done(*runs))) == [1, 2, 3]
    assert runs[-1][-2].kind == "promoted"
    assert set(admitted(*runs)) == set(all_of(1, 2, 3))
    decisions = [d for d in rig.registry.decisions() if d.kind == "candidate"]
    assert len(decisions) == 1
    assert decisions[0].run in {run[0].run for run in runs}
