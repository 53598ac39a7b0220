"""Somebody who reaches the SuperLink pushes an app to a device's real SuperNode: none of its code
runs there."""

from pathlib import Path

import pytest

from compose.launcher import flower_processes
from compose.launcher.broker import Launch
from edge_client.supernode import FOREIGN, NodeSettings, command
from federation.controller.flwr_cli import Submission
from tests.rig.processes.flower import FlowerStack
from tests.rig.processes.polling import until

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

if os.environ.get("FLWR_HOME", "").endswith("/d0"):
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


@pytest.mark.timeout(720)
def test_a_device_that_a_run_invited_answers_that_run_alone_and_runs_no_code_of_another(
    tmp_path: Path,
) -> None:
    """Whatever app somebody pushes to the SuperLink, also in our name."""
    mark, answers = tmp_path / "mark", tmp_path / "answers"
    attack = ATTACK.format(mark=str(mark), answers=str(answers))
    with FlowerStack(tmp_path, {}, {}) as processes:
        invited = NodeSettings(
            device="d0", agent=str(tmp_path / "nobody.sock"), superlink=processes.address,
            runs=[7], pull_s=0.3,
        )  # fmt: skip
        processes.start("d0", Launch(command(invited), {"FLWR_HOME": str(tmp_path / "d0")}))
        flwr = flower_processes.flwr(tmp_path, processes.address)
        until(lambda: "d0: node " in processes.log("d0"), "d0 is in", 60)
        apps = {
            "a stranger's": write_app(tmp_path / "one", {"attack.py": attack}, name="other"),
            "in our name": write_app(tmp_path / "two", {"attack.py": attack}),
        }
        for number, (what, app) in enumerate(apps.items(), 1):
            Submission(flwr, app).start({}, tmp_path)
            until(lambda n=number: lines(answers) >= n, f"{what} is answered", 90)
        assert "is refused: it is a message of another run" in processes.log("d0")
        assert answers.read_text().count(FOREIGN) == 2
        assert processes.processes["d0"].poll() is None
        assert not mark.exists()
        assert list((tmp_path / "d0").rglob("attack.py")) == []


def lines(path: Path) -> int:
    return len(path.read_text().splitlines()) if path.exists() else 0
