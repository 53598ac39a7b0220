"""The rule of compose/proxy/nginx.conf with a real SuperLink behind it: devices take part through
it, and control and run time are not there."""

import shutil
from contextlib import ExitStack
from pathlib import Path

import pytest
from flwr.superlink.routers.fleet.router import router

from compose.launcher import flower_processes
from compose.launcher.node_registry import make_key, public_path
from federation.registry.registry import Registry
from streams.contract.errors import ProcessFailed
from streams.contract.task import Task
from streams.contract.topics import topic_specs
from streams.kafka.admin import ensure_topics
from streams.kafka.settings import BrokerSettings
from tests.rig.made_up.own_task import own_task
from tests.rig.processes.flower import FlowerStack, journals, resident
from tests.rig.processes.polling import until
from tests.rig.processes.stand_in_agent import StandInAgent
from tests.rig.servers.nginx import Proxy, allowed, ask, nginx

NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
LETS_ITSELF_IN = {"/v1/fleet/register-node", "/v1/fleet/unregister-node"}


@pytest.fixture
def task_ref(tmp_path: Path) -> str:
    return own_task(tmp_path)


def test_the_rule_passes_on_what_a_keyed_node_calls() -> None:
    """A Flower with another call of SuperNodes shows here."""
    paths = {route.path for route in router.routes}  # type: ignore[attr-defined]
    assert paths > LETS_ITSELF_IN
    assert {path for path in paths if allowed().search(path)} == paths - LETS_ITSELF_IN


@pytest.mark.kafka
@pytest.mark.timeout(720)
def test_devices_take_part_through_the_rule_and_nothing_else_is_reached(
    kafka: BrokerSettings,
    task_ref: str,
    tiny: Task,
    registry: Registry,
    tmp_path: Path,
    sockets: Path,
) -> None:
    assert NGINX, "needs nginx: `make .venv/nginx`, or install your system's package nginx-light"
    ensure_topics(kafka, topic_specs(tiny.id))
    names = ["d0", "d1"]
    with ExitStack() as stack:
        env = {"TIDEWHEEL_KAFKA": kafka.bootstrap}
        processes = stack.enter_context(FlowerStack(tmp_path, {}, env, secure=True))
        assert processes.ca is not None
        way = nginx(NGINX, tmp_path / "proxy", processes.port, processes.ca)
        proxy = stack.enter_context(way)
        processes.nodes.add_all(names)
        for name in names:
            agent, key = sockets / f"{name}.sock", processes.nodes.key(name)
            stack.enter_context(StandInAgent(tiny, name, agent))
            at = f"{flower_processes.HOST}:{proxy.port}"
            processes.start(name, resident(name, agent, at, proxy.ca, key))
        config = {"task": task_ref, "state": str(tmp_path), "rounds": 1, "epochs": 6}
        submission = flower_processes.submission(tmp_path, processes.address, config, processes.ca)
        run = submission.start({"minimum-nodes": 2}, tmp_path)
        until(lambda: submission.runs()[run].startswith("finished"), "the run ends", 120)
        assert submission.runs()[run] == "finished:completed", processes.log("superexec")
        check_what_is_hidden(processes, proxy, tmp_path / "hostile")
        assert list(submission.runs()) == [run]
    [events] = journals(tmp_path)
    assert sorted(e.device for e in events if e.kind == "admitted") == names


def check_what_is_hidden(processes: FlowerStack, proxy: Proxy, folder: Path) -> None:
    """What someone who reaches the proxy alone can do: nothing."""
    known = len(processes.nodes.statuses())
    at = f"{flower_processes.HOST}:{proxy.port}"
    submission = flower_processes.submission(folder, at, {}, proxy.ca)
    make_key(folder / "key")
    with pytest.raises(ProcessFailed, match="403"):
        submission.start({}, folder)
    with pytest.raises(ProcessFailed, match="403"):
        submission.runs()
    public = str(public_path(folder / "key"))
    with pytest.raises(ProcessFailed, match="403"):
        submission.flwr.call("supernode register", public, flower_processes.CONNECTION)
    processes.start("hostile", flower_processes.superexec(folder, proxy.port, ca=proxy.ca))
    until(lambda: "403" in processes.log("hostile"), "the SuperExec is refused", 60)
    processes.start("keyless", resident("d0", folder / "a.sock", at, proxy.ca))
    assert processes.processes["keyless"].wait(60) != 0
    assert len(processes.nodes.statuses()) == known
    for path in (
        "/", "/health", "/docs", "/openapi.json", "/v1/control/list-runs", "/v1/runtime/pull-logs",
        "/v1/fleet/register-node", "/v1/fleet/../control/list-runs", "/v1/fleet/pull-messages/",
        "/v1/fleet/get-run/../../control/list-runs", "/v1/control/list-runs?/v1/fleet/get-run",
        "/v1/fleet/%2e%2e/control/list-runs", "/v1/fleet/..%2fcontrol/list-runs",
        "//v1/control/list-runs", "/v1/control/list-runs%00/v1/fleet/get-run",
    ):  # fmt: skip
        assert ask(proxy, "POST", path) in (400, 403), path
    assert ask(proxy, "GET", "/v1/fleet/pull-messages") == 403
    assert ask(proxy, "POST", "/v1/fleet/pull-messages") in (400, 401, 415, 422)
