"""Whoever reaches the SuperLink pushes an app of his own to a device's real SuperNode: nothing of
it runs there, and our own run goes on."""

import hashlib
import io
import subprocess
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compose.launcher import flower_processes
from edge_client.supernode import CLIENT_APP, ForeignApp, check_bundle, check_run
from federation.controller.flwr_cli import Submission
from tests.federation.flower_stack import FlowerStack, wait_for

PROJECT = """
[project]
name = "{name}"
version = "1.0.0"
description = "x"
license = "Apache-2.0"
dependencies = [{dependencies}]

[tool.flwr.app]
publisher = "{publisher}"
{include}

[tool.flwr.app.components]
serverapp = "attack:server"
clientapp = "{client}"

[tool.flwr.app.config]
"""

# It asks every node for work, and its ClientApp leaves a mark where it runs.
ATTACK = """
import os, pathlib
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

server = ServerApp()
client = ClientApp()

@server.main()
def main(grid, context):
    nodes = list(grid.get_node_ids())
    messages = [Message(RecordDict(), node, "train") for node in nodes]
    for reply in grid.send_and_receive(messages, timeout=40):
        said = reply.error if reply.has_error() else reply.content
        pathlib.Path({answers!r}).open("a").write(f"{{said}}\\n")

@client.train()
def train(message, context):
    pathlib.Path({mark!r}).write_text("it ran")
    return Message(RecordDict({{"metrics": MetricRecord({{"num-examples": 1}})}}), reply_to=message)

if os.environ.get("FLWR_HOME", "").endswith("nodes/d0"):
    pathlib.Path({mark!r}).write_text("it was imported")
"""


def write_app(folder: Path, files: dict[str, str], **about: str) -> Path:
    folder.mkdir(parents=True)
    fields = {"name": "tidewheel", "publisher": "tidewheel", "client": "attack:client",
              "dependencies": "", "include": ""}  # fmt: skip
    (folder / "pyproject.toml").write_text(PROJECT.format(**{**fields, **about}))
    (folder / "README.md").write_text("x")
    for name, text in files.items():
        (folder / name).write_text(text)
    return folder


@pytest.mark.timeout(240)
def test_a_hostile_app_that_is_pushed_is_refused_by_the_device(tmp_path: Path) -> None:
    """One that says it is ours, too; the SuperNode stays and says why."""
    mark, answers = tmp_path / "mark", tmp_path / "answers"
    attack = ATTACK.format(mark=str(mark), answers=str(answers))
    with FlowerStack(tmp_path, {"d0": tmp_path / "nobody.sock"}, {}) as processes:
        flwr = flower_processes.flwr(tmp_path, processes.address)
        wait_for("d0 is in", lambda: "SuperNode ID" in processes.log("d0"), 60)
        apps = {
            "a stranger's": write_app(tmp_path / "one", {"attack.py": attack}, name="other"),
            "in our name": write_app(tmp_path / "two", {"attack.py": attack}),
        }
        for number, (what, app) in enumerate(apps.items(), 1):
            run = Submission(flwr, app).start({}, tmp_path)
            wait_for(f"{what} is answered", lambda n=number: lines(answers) >= n, 90)
            assert f"run {run} is refused, its app is not Tidewheel's" in processes.log("d0")
        assert "The FAB could not be verified" in answers.read_text()
        assert processes.processes["d0"].poll() is None
        assert not mark.exists()
        installed = list((tmp_path / "flower" / "nodes" / "d0").rglob("attack.py"))
        assert installed == []


def lines(path: Path) -> int:
    return len(path.read_text().splitlines()) if path.exists() else 0


def ours(tmp_path: Path) -> bytes:
    """The bundle that `flwr run` makes of our folder."""
    made = flower_processes.submission(tmp_path, "127.0.0.1:1", {"task": "a.py:task"})
    command = [flower_processes.program("flwr"), "build", "--app", str(made.app)]
    environ = flower_processes.environment(tmp_path / "home")
    subprocess.run(command, check=True, env=environ, cwd=tmp_path, capture_output=True)
    [path] = tmp_path.glob("*.fab")
    return path.read_bytes()


def repacked(bundle: bytes, **changes: str | None) -> bytes:
    """With files added, replaced or left out; their names have "_" for "."."""
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(bundle)) as old, zipfile.ZipFile(made, "w") as new:
        files = {name: old.read(name).decode() for name in old.namelist()}
        for name, text in {**files, **changes}.items():
            if text is not None:
                new.writestr(name, text)
    return made.getvalue()


@dataclass
class RunRecord:
    fab_id: str = "tidewheel/tidewheel"
    fab_version: str = "1.0.0"
    fab_hash: str = ""
    primary_task_type: str = "flwr-serverapp"


def test_our_bundle_is_taken_and_no_change_of_it_that_could_run_code(tmp_path: Path) -> None:
    bundle = ours(tmp_path)
    check_bundle(bundle)
    check_run(RunRecord(fab_hash=hashlib.sha256(bundle).hexdigest()), bundle)
    with zipfile.ZipFile(io.BytesIO(bundle)) as found:
        project = found.read("pyproject.toml").decode()
    assert CLIENT_APP in project
    bad: dict[str, dict[str, Any]] = {
        "files beside": {"edge_client/client_app.py": "import os"},
        "sitecustomize": {"sitecustomize.py": ""},
        "another app": {"pyproject.toml": project.replace(CLIENT_APP, "os:system")},
        "of another publisher": {
            "pyproject.toml": project.replace('publisher = "tidewheel"', 'publisher = "x"')
        },
        "with packages": {
            "pyproject.toml": project.replace("dependencies = []", 'dependencies = ["evil"]')
        },
        "without settings": {"pyproject.toml": None},
        "no TOML": {"pyproject.toml": "[["},
        "large": {"README.md": "x" * 200_000},
    }
    for change in bad.values():
        with pytest.raises(ForeignApp):
            check_bundle(repacked(bundle, **change))
    for record in (
        RunRecord(),
        RunRecord(fab_id="../../x", fab_hash=hashlib.sha256(bundle).hexdigest()),
        RunRecord(primary_task_type="flwr-agentapp", fab_hash=hashlib.sha256(bundle).hexdigest()),
    ):
        with pytest.raises(ForeignApp):
            check_run(record, bundle)


@given(st.binary(max_size=400))
@settings(max_examples=100)
def test_bytes_that_are_no_bundle_are_refused(junk: bytes) -> None:
    with pytest.raises(ForeignApp):
        check_bundle(junk)
