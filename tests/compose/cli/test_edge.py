"""`tidewheel edge`: a device fed by lines, asked, labelled, drained and wiped."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from edge_client.ipc import ask, socket_path
from edge_client.samples.samples import Samples
from edge_client.spool.queue import Spool
from edge_client.uplink.task_queues import LABELS, queue_folder
from streams.contract.events.records import EventBatch, decode_event_message
from streams.contract.task import Task, load_task
from streams.contract.topics import EVENTS, topic_name, topic_specs
from streams.contract.work import AgentRequest, Label
from streams.kafka.admin import ensure_topics
from streams.kafka.reader import Reader
from streams.kafka.settings import BrokerSettings
from streams.runtime.trust import create_key
from tests.compose.cli.test_cli import fails, port_without_listener, tidewheel
from tests.rig.made_up.models import artifact, plain
from tests.rig.made_up.own_task import own_task
from tests.rig.processes.workers import until

pytestmark = pytest.mark.kafka
ROOT = Path(__file__).parents[3]
START_US = 1_760_000_000_000_000
STEP_US = 50_000  # 20 Hz


@dataclass
class Place:
    """A state folder with a task of its own and a served model, and the agent that runs there."""

    folder: Path
    reference: str
    task: Task
    kafka: BrokerSettings
    agents: list[subprocess.Popen[str]] = field(default_factory=list)
    sent: int = 0

    def run(self, *words: str, given: str = "") -> subprocess.CompletedProcess[str]:
        command = ("edge", words[0], self.reference, "--device", "d0", *words[1:])
        return tidewheel(*command, folder=self.folder, given=given, PYTHONPATH=str(ROOT))

    def start(self, bootstrap: str, *more: str) -> subprocess.Popen[str]:
        words = ["edge", "run", self.reference, "--device", "d0", "--source", "stdin"]
        agent = subprocess.Popen(
            [sys.executable, "-m", "compose.cli.main", *words, "--model", "model.twa", "--kafka",
             bootstrap, "--trust", "signing.pub", *more],
            cwd=self.folder, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        )  # fmt: skip
        self.agents.append(agent)
        return agent

    def feed(self, agent: subprocess.Popen[str], count: int) -> None:
        """`count` readings more, and a line that is none."""
        assert agent.stdin is not None
        for i in range(self.sent, self.sent + count):
            reading = {"time_us": START_US + STEP_US * i, "values": [i % 7, 1.0]}
            agent.stdin.write(json.dumps(reading) + "\n")
        agent.stdin.write("garbage\n")
        agent.stdin.flush()
        self.sent += count

    def status(self) -> dict[str, Any]:
        done = self.run("status", "--json")
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def produced(self) -> int:
        """-1 while the agent is still starting."""
        done = self.run("status", "--json")
        return -1 if done.returncode else int(json.loads(done.stdout)["produced"])

    def rows(self) -> list[dict[str, Any]]:
        """The rows on `events`, by seq."""
        reader = Reader(self.kafka, [topic_name(self.task.id, EVENTS)])
        try:
            messages = reader.read_to_end()
        finally:
            reader.close()
        found = [decode_event_message(self.task, m.key, m.value, m.headers) for m in messages]
        batches = [batch for batch in found if isinstance(batch, EventBatch)]
        rows = [row for batch in batches for row in batch.rows.to_pylist()]
        return sorted(rows, key=lambda row: row["seq"])

    def delivered(self) -> list[int]:
        """The seqs on `events`."""
        return [row["seq"] for row in self.rows()]


LEARNER = """
from dataclasses import replace
from streams.contract.task import Outcome
from tests.rig.made_up.tiny_task import task as tiny

def outcomes(device, answered):
    found = []
    for one in answered:  # what it was shows in the mean
        found.append(Outcome(one.first_us, one.last_us, round(float(one.segment.mean()) / 2)))
        if len(found) == 200:  # the first training has all of them
            yield from found

task = replace(
    tiny, name="learner", outcomes=outcomes,
    training=replace(
        tiny.training, personal=True, choice="offered", learning_rate=0.2, label_share=0.0,
    ),
)
"""


@pytest.fixture
def place(kafka: BrokerSettings, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Place]:
    learner = request.param if hasattr(request, "param") else None
    if learner is None:
        reference = own_task(tmp_path)
    else:
        (tmp_path / "learner.py").write_text(learner)
        reference = f"{tmp_path}/learner.py:task"
    task = load_task(reference)
    key = create_key(tmp_path / "signing.pem")
    (tmp_path / "model.twa").write_bytes(artifact(key, plain(1), task=task))
    ensure_topics(kafka, topic_specs(task.id))
    made = Place(tmp_path, reference, task, kafka)
    yield made
    for agent in made.agents:
        agent.kill()
        agent.wait()
        for stream in (agent.stdin, agent.stderr):
            if stream is not None:
                stream.close()


def test_the_end_of_standard_input_drains_and_ends(place: Place) -> None:
    agent = place.start(place.kafka.bootstrap)
    place.feed(agent, 20 * 30)
    assert agent.stdin is not None
    agent.stdin.close()
    assert agent.wait(60) == 0
    assert agent.stderr is not None
    assert "d0: the source has ended: draining" in agent.stderr.read()
    expected = (20 * 30 - 20) // 10 + 1
    assert place.delivered() == list(range(expected))
    found = place.status()
    account = found["produced"], found["delivered"], found["pending"], found["dropped"]
    assert account == (expected, expected, 0, {})


def test_with_stay_it_goes_on_without_readings(place: Place) -> None:
    agent = place.start(place.kafka.bootstrap, "--stay")
    place.feed(agent, 40)
    assert agent.stdin is not None
    agent.stdin.close()
    until(lambda: place.produced() == 3, "what came is answered")
    until(lambda: place.status()["phase"] == "source ended", "it says that the source has ended")
    assert place.run("drain", "--kafka", place.kafka.bootstrap).returncode == 0
    assert agent.wait(10) == 0
    assert place.delivered() == [0, 1, 2]


def test_a_device_is_fed_asked_labelled_drained_and_wiped(place: Place) -> None:
    agent = place.start(place.kafka.bootstrap)
    assert agent.stdin is not None
    agent.stdin.write(f'{{"time_us": {START_US - STEP_US}, "values": [0, 1], "label": 7}}\n')
    place.feed(agent, 20 * 30)
    expected = (20 * 30 - 20) // 10 + 1  # segments of 20 readings, a new one every 10
    until(lambda: place.produced() == expected, "every segment is an event")
    found = place.status()
    assert found["phase"] == "running"
    assert found["skipped"] == {"malformed-line": 1}
    assert found["irregular"] == {"label-unfit": 1}
    said = place.run("status").stdout
    assert "readings without an event since the agent's start: malformed-line 1\n" in said
    assert "irregular since the agent's start: label-unfit 1\n" in said
    assert found["epoch"]

    end = START_US + STEP_US * 20 * 30
    line = {"from_us": START_US, "to_us": end, "label": "fast"}
    done = place.run("label", given=json.dumps(line))
    assert (done.returncode, done.stdout) == (0, f"d0: {expected} segments have a true label\n")
    assert place.status()["true_labels"] == expected
    kept = Samples(place.task, place.folder / ".tidewheel" / "devices" / "d0" / "samples.rows")
    assert kept.counts()[:2] == (expected, expected)  # a yes means that they are on the disk
    done = place.run(
        "label", given='{"from_us": 1, "label": "fast"}\n\n{"from_us": 1, "label": 7}\n'
    )
    fails(done, 2, "line 3: 7 is not a label of this task: slow, middle, fast")

    fails(place.run("wipe"), 2, "another agent serves the device")
    done = place.run("label", "--json", given=json.dumps(line | {"label": "slow"}))
    assert json.loads(done.stdout) == {"device": "d0", "labelled": expected}
    done = place.run("drain", "--kafka", place.kafka.bootstrap, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"device": "d0", "pending": 0}
    assert agent.wait(10) == 0
    assert place.delivered() == list(range(expected))
    stopped = place.status()
    assert (stopped["phase"], stopped["delivered"], stopped["pending"]) == ("stopped", expected, 0)
    assert stopped["active"] == found["active"]
    assert (stopped["samples"], stopped["true_labels"]) == (expected, expected)
    said = place.run("status").stdout
    assert f"{expected} samples, {expected} with a true label" in said
    assert "0 us" not in said

    fails(place.run("label", given=json.dumps(line)), 1, "no agent serves the device")
    done = place.run("wipe", "--json")
    assert (done.returncode, json.loads(done.stdout)) == (0, {"device": "d0", "lost": 0})
    fails(place.run("status"), 2, "there is no device in")
    fails(place.run("label"), 2, "there is no device in .tidewheel/devices/d0")
    agent = place.start(place.kafka.bootstrap)  # without --model it would serve its slot as well
    until(lambda: place.produced() == 0, "the device is there again")
    again = place.status()
    assert (again["produced"], again["active"]) == (0, found["active"])
    assert again["epoch"] != found["epoch"]


@pytest.mark.parametrize("more", [[], [9.0]], ids=["all-fit", "one-does-not"])
def test_labels_that_were_answered_survive_a_kill_right_after_the_answer(
    place: Place, more: list[float]
) -> None:
    agent = place.start(f"127.0.0.1:{port_without_listener()}")
    place.feed(agent, 200)
    until(lambda: place.produced() == 19, "every segment is an event")
    folder = place.folder / ".tidewheel" / "devices" / "d0"
    labels = [Label(first_us=1, last_us=2**55, label=[value]) for value in (2.0, *more)]
    answer = ask(socket_path(folder), AgentRequest(op="label", labels=labels))
    agent.kill()
    agent.wait()
    assert (answer.labelled, answer.error is None) == (19, not more)
    assert Samples(place.task, folder / "samples.rows").sources() == {"user": 19}
    assert Spool(queue_folder(folder, LABELS, place.task)).account().pending == 1


def test_what_an_offline_device_has_is_sent_later_without_its_agent(place: Place) -> None:
    nowhere = f"127.0.0.1:{port_without_listener()}"
    agent = place.start(nowhere)
    place.feed(agent, 200)
    until(lambda: place.produced() == 19, "every segment is an event")
    fails_with = place.run("drain", "--kafka", nowhere, "--timeout", "5")
    assert fails_with.returncode == 1
    assert "19 events of d0 are still pending" in fails_with.stderr
    assert agent.wait(30) == 0
    fails(place.run("wipe"), 2, "19 events are pending and would be lost")
    assert place.status()["pending"] == 19
    done = place.run("drain", "--kafka", place.kafka.bootstrap)
    assert (done.returncode, done.stdout.splitlines()) == (
        0,
        ["d0: 19 events are pending", "d0: nothing is pending"],
    )
    assert place.delivered() == list(range(19))
    stopped = place.status()
    assert (stopped["produced"], stopped["delivered"], stopped["pending"]) == (19, 19, 0)


def test_lines_that_are_nothing_end_the_agent_with_what_to_write(place: Place) -> None:
    agent = place.start(place.kafka.bootstrap)
    _, said = agent.communicate("speed,height\n1,2\n", timeout=60)
    assert agent.returncode == 2
    assert "write time_us,x,y[,label]" in said.splitlines()[-1]


def hurried(agent: "subprocess.Popen[str]") -> bool:
    """Give the device's trainer its share of the cores: it lets all other sessions go first, and
    those of other tests would leave it none. That it gives way is tested with the trainer."""
    for child in psutil.Process(agent.pid).children():
        with suppress(OSError):  # it has just ended, or another system
            Path(f"/proc/{child.pid}/autogroup").write_text("0")
    return True


def answers(place: Place) -> bool:
    """Whether the device answers with what it has trained."""
    return bool((place.status()["challenger"] or {}).get("answers"))


ADAPTS = LEARNER.replace('choice="offered"', 'choice="device"').replace("learner", "adapts")


@pytest.mark.parametrize(
    ("place", "kind", "called", "right"),
    [(LEARNER, "p1", "own copy", 30), (ADAPTS, "a1", "input adapter", 14)],
    indirect=["place"],
)
def test_a_device_learns_from_outcomes_and_answers_with_what_it_has_trained(
    place: Place, kind: str, called: str, right: int
) -> None:
    agent = place.start(place.kafka.bootstrap)
    assert agent.stdin is not None

    def feed(first: int, count: int) -> None:
        noise = np.random.default_rng(first)
        for i in range(first, first + count):
            level = 2 * (i // 200 % 3)  # a class lasts for ten seconds
            values = noise.normal(level, 0.3, 2).tolist()
            line = {"time_us": START_US + STEP_US * i, "values": values}
            assert agent.stdin is not None
            agent.stdin.write(json.dumps(line) + "\n")
        agent.stdin.flush()

    feed(0, 2400)
    until(lambda: place.produced() == 239, "every segment is an event")
    until(lambda: hurried(agent) and answers(place), "it answers", 90)
    found = place.status()
    assert found["label_sources"].keys() == {"outcome"}
    assert found["challenger"]["loss"] < found["challenger"]["base_loss"]
    own = found["challenger"]["model"]
    assert own.startswith(f"{found['active']}.{kind[0]}")
    shown = place.run("status").stdout
    assert f"{called} {own} answers" in shown
    feed(2400, 400)
    until(lambda: place.produced() == 279, "every segment is an event")
    assert place.run("drain", "--kafka", place.kafka.bootstrap).returncode == 0
    assert agent.wait(10) == 0
    rows = place.rows()
    assert [row["seq"] for row in rows] == list(range(279))
    assert {row["model"] for row in rows[:239]} == {found["active"]}
    assert own in {row["model"] for row in rows[239:]}
    assert (place.folder / ".tidewheel" / "devices" / "d0" / "challenger.safetensors").exists()
    assert place.run("wipe").returncode == 0
    assert not (place.folder / ".tidewheel" / "devices" / "d0" / "challenger.safetensors").exists()
    own = [(round(np.mean(row["segment"]) / 2), np.argmax(row["outputs"])) for row in rows[239:]]
    # of 40, some between two classes; the weights before an adapter are drawn, not trained
    assert sum(truth == answer for truth, answer in own) > right
