"""compose/docker/compose.yaml as it is: the loop closes in containers, survives SIGKILL, keeps its
account, runs nothing as root and opens nothing that it should not.

Part of `make test-docker`, about 10 minutes.
"""

import json
import os
import re
import signal
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.docker.machine import REPOSITORY, docker, images, run
from tests.rig.processes.workers import until

FILE = REPOSITORY / "compose" / "docker" / "compose.yaml"
DEVICES = ("device-1", "device-2", "device-3")
TASK = "/task/demo.py:task"
ADDRESS = "http://127.0.0.1:9090"

pytestmark = pytest.mark.timeout(1500)


@dataclass
class Loop:
    """The project, taken down with its volumes at the end."""

    folder: Path
    environ: dict[str, str] = field(default_factory=dict)

    def compose(self, *words: str) -> str:
        file = ["docker", "compose", "--file", str(FILE), "--project-name", "tidewheel-test"]
        return run(*file, *words, env={**os.environ, **self.environ})

    def containers(self, service: str) -> list[str]:
        return self.compose("ps", "--quiet", service).split()

    def inside(self, service: str, *words: str) -> str:
        return run("docker", "exec", self.containers(service)[0], *words)

    def status(self) -> dict[str, Any]:
        found = self.inside(
            "controller", "tidewheel", "status", TASK, "--state", "/state", "--json"
        )
        return dict(json.loads(found))

    def inspect(self, container: str) -> dict[str, Any]:
        return dict(json.loads(run("docker", "inspect", container))[0])

    def kill(self, container: str) -> None:
        """SIGKILL from outside, which Docker takes for a crash; wait until it runs again."""
        before = self.inspect(container)["State"]["Pid"]
        os.kill(before, signal.SIGKILL)

        def again() -> bool:
            state = self.inspect(container)["State"]
            return bool(state["Running"]) and state["Pid"] not in (0, before)

        until(again, f"{container} runs again", 60)


@pytest.fixture(scope="module")
def loop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loop]:
    folder = tmp_path_factory.mktemp("docker")
    with docker(folder):
        made = Loop(
            folder,
            {
                **images(folder),
                "IMAGES": "tidewheel-test",
                "PROXY_PORT": "127.0.0.1:0",
                "CONSOLE_PORT": "127.0.0.1:0",
            },
        )
        try:
            made.compose("build")
            made.compose("up", "--detach", "--no-build")
            yield made
        finally:
            logs = made.compose("logs", "--no-color")
            (folder / "compose.log").write_text(logs)
            made.compose("down", "--volumes", "--timeout", "5")


def served(loop: Loop) -> int:
    """The number of the version that all devices serve."""
    names = {device["active"] for device in loop.status()["devices"]}
    return min((int(name.split("-")[0]) for name in names), default=0)


def test_the_loop_closes_and_a_kill_of_worker_and_broker_loses_and_doubles_nothing(
    loop: Loop,
) -> None:
    until(lambda: served(loop) > 1, "every device serves what the fleet has learned", 600)
    before = {device["device"]: device for device in loop.status()["devices"]}
    loop.kill(loop.containers("kafka")[0])
    loop.kill(loop.containers("worker")[0])

    def counts() -> dict[str, dict[str, Any]]:
        return {device["device"]: device for device in loop.status()["devices"]}

    def go_on() -> bool:
        try:
            now = counts()
        except AssertionError:  # the broker is not back yet
            return False
        return all(now[name]["delivered"] > before[name]["delivered"] + 100 for name in DEVICES)

    until(go_on, "all devices deliver again", 180)
    loop.compose("stop", *DEVICES)  # each drains its spool
    last = counts()
    assert {name: last[name]["pending"] for name in DEVICES} == dict.fromkeys(DEVICES, 0)
    assert all(last[name]["dropped"] == {} for name in DEVICES)

    def stored() -> dict[str, tuple[int, int]]:
        sql = (
            "select device, count(*) n, count(distinct (epoch, seq)) once from scores group by all"
        )
        text = loop.inside(
            "worker", "tidewheel", "query", sql, "--store", "/store/tables", "--json"
        )
        rows = [json.loads(line) for line in text.splitlines()]
        return {row["device"]: (row["n"], row["once"]) for row in rows}

    wanted = {name: (last[name]["produced"],) * 2 for name in DEVICES}
    until(lambda: stored() == wanted, f"the store has {wanted}", 120)


def test_every_panel_and_rule_has_data_and_an_alert_fires(loop: Loop) -> None:
    """On Prometheus as it is scraped there; before anything is taken down."""

    def ask(expr: str) -> str:
        return loop.inside("prometheus", "promtool", "query", "instant", ADDRESS, expr).strip()

    monitoring = REPOSITORY / "compose" / "monitoring"
    loop.compose("start", *DEVICES)  # they may have been drained above
    panels = [
        (path.stem, panel["title"], target["expr"])
        for path in sorted((monitoring / "grafana" / "dashboards").glob("*.json"))
        for panel in json.loads(path.read_text())["panels"]
        for target in panel["targets"]
    ]
    assert len(panels) > 20
    for panel in panels:
        until(lambda panel=panel: ask(panel[2]) != "", f"{panel} has data", 120)  # type: ignore[misc]
    records = re.findall(r"record: (\S+)", (monitoring / "rules.yaml").read_text())
    assert {name for name in records if not ask(name)} == set()
    assert ask('ALERTS{alertname="TidewheelNoWorker", alertstate="firing"}') == ""
    loop.compose("stop", "worker")
    firing = 'ALERTS{alertname="TidewheelNoWorker", alertstate="firing"}'
    until(lambda: ask(firing) != "", "the alert fires", 180)
    loop.compose("start", "worker")
    until(lambda: ask(firing) == "", "the alert ends", 120)


def test_nothing_runs_as_root_or_may_write_to_its_image(loop: Loop) -> None:
    for container in loop.compose("ps", "--quiet").split():
        found = loop.inspect(container)
        assert found["HostConfig"]["ReadonlyRootfs"], found["Name"]
        assert found["HostConfig"]["CapDrop"] == ["ALL"], found["Name"]
        users = run("docker", "top", container, "-eo", "pid,uid").split()[3::2]
        assert users, found["Name"]
        assert "0" not in users, found["Name"]


def published(loop: Loop) -> dict[str, str]:
    """What this host listens on: address by a container's port."""
    found: dict[str, str] = {}
    for container in loop.compose("ps", "--quiet").split():
        ports = loop.inspect(container)["NetworkSettings"]["Ports"] or {}
        found |= {
            port: f"{to[0]['HostIp']}:{to[0]['HostPort']}" for port, to in ports.items() if to
        }
    return found


def test_proxy_and_console_alone_are_published_on_loopback(loop: Loop) -> None:
    found = published(loop)
    assert found.keys() == {"9093/tcp", "8750/tcp"}
    assert {address.rpartition(":")[0] for address in found.values()} == {"127.0.0.1"}


def test_the_console_shows_the_fleet(loop: Loop) -> None:
    address = f"http://{published(loop)['8750/tcp']}"
    with httpx.Client(base_url=address) as client:
        until(lambda: client.get("/ready").status_code == 200, "the console has read the past", 60)
        devices = client.get("/api/status").json()["devices"]
    assert {device["device"] for device in devices} == set(DEVICES)


def test_the_proxy_passes_no_control_call(loop: Loop) -> None:
    port = published(loop)["9093/tcp"].rpartition(":")[2]
    ca = loop.folder / "ca.pem"
    ca.write_text(loop.inside("superlink", "cat", "/state/keys/superlink/ca.pem"))

    def status(path: str) -> str:
        words = ["--silent", "--output", "/dev/null", "--write-out", "%{http_code}", "--cacert"]
        to = ["--connect-to", f"superlink:9093:127.0.0.1:{port}", "--request", "POST"]
        return run("curl", *words, ca, *to, f"https://superlink:9093{path}")

    assert status("/v1/control/list-runs") == "403"
    assert status("/v1/fleet/register-node") == "403"
    assert status("/v1/fleet/pull-messages") == "415"  # by the SuperLink: there is no message in it


@pytest.mark.parametrize(
    ("service", "target", "reached"),
    [
        ("device-1", ("kafka", 9092), True),
        ("device-1", ("superlink", 9093), True),
        ("device-1", ("superlink", 8000), False),  # on loopback there
        ("worker", ("server", 8000), False),
        ("console", ("kafka", 9092), True),
        ("console", ("superlink", 9093), False),
    ],
)
def test_who_reaches_whom(loop: Loop, service: str, target: tuple[str, int], reached: bool) -> None:
    code = f"import socket; socket.create_connection({target!r}, 3)"
    container = loop.containers(service)[0] if loop.containers(service) else ""
    if not container:  # drained above
        loop.compose("start", service)
        container = loop.containers(service)[0]
    done = subprocess.run(["docker", "exec", container, "python3", "-c", code], capture_output=True)
    assert (done.returncode == 0) == reached, done.stderr.decode()[-300:]


EDGE = """
services:
  edge: {image: tidewheel-test/edge:latest, networks: [kafka, fleet]}
"""


def test_a_device_on_a_machine_of_its_own_needs_no_torch(loop: Loop) -> None:
    """The profile `edge`, with the files that `enrol` has laid out and the image without torch."""
    loop.compose("stop", "device-3")
    before = {d["device"]: d["epoch"] for d in loop.status()["devices"]}["device-3"]
    files, override = loop.folder / "device", loop.folder / "edge.yaml"
    files.mkdir()
    override.write_text(EDGE)
    volume = ["--volume", "tidewheel-test_enrolled:/enrolled:ro", "--entrypoint", "tar"]
    read = ["docker", "run", "--rm", *volume, "tidewheel-test/server:latest"]
    packed = subprocess.run([*read, "-C", "/enrolled/device-3", "-c", "."], stdout=subprocess.PIPE)
    subprocess.run(["tar", "-x", "-C", files], input=packed.stdout, check=True)
    options = {"PYTHON_IMAGE", "PIP_OPTIONS"} & loop.environ.keys()
    args = [word for name in options for word in ("--build-arg", f"{name}={loop.environ[name]}")]
    args += ["--build-context", f"wheels={loop.environ.get('WHEELS', FILE.parent / 'wheels')}"]
    args += ["--tag", "tidewheel-test/edge:latest", "--file", str(FILE.parent / "Dockerfile")]
    run("docker", "buildx", "build", "--load", "--target", "edge", *args, REPOSITORY)
    loop.environ |= {"DEVICE": "device-3", "DEVICE_FILES": str(files)}
    profile = ["--file", str(override), "--profile", "edge"]
    try:
        loop.compose(*profile, "up", "--detach", "--no-build", "edge")

        def works() -> bool:
            found = {device["device"]: device for device in loop.status()["devices"]}["device-3"]
            return found["epoch"] != before and found["delivered"] > 50

        until(works, "its events are delivered", 120)
        code = "import importlib.util as u; raise SystemExit(u.find_spec('torch') is not None)"
        container = loop.compose(*profile, "ps", "--quiet", "edge").strip()
        run("docker", "exec", container, "python3", "-c", code)
    finally:
        loop.compose(*profile, "rm", "--stop", "--force", "edge")
        loop.compose("start", "device-3")


def test_a_second_start_keeps_the_keys_and_the_models(loop: Loop) -> None:
    def key() -> str:
        return loop.inside("controller", "cat", "/state/keys/signing.pub")

    before, version = key(), loop.status()["release"]["stable"]
    loop.compose("down", "--timeout", "20")
    loop.compose("up", "--detach", "--no-build")
    assert key() == before
    until(lambda: loop.status()["release"]["stable"] == version, "it is released still", 120)
    assert not _listens(9092)


def _listens(port: int) -> bool:
    with socket.socket() as found:
        return found.connect_ex(("127.0.0.1", port)) == 0
