"""The controller on a real Kafka, with a stand-in for Flower's command."""

import gc
import logging
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from compose.cli.server import ask_for_run
from federation.controller import controller, run_tracker
from federation.controller.flwr_cli import ConfigValue, Flwr, Submission
from federation.controller.settings import ControllerSettings
from federation.registry import key_rotation
from federation.registry.registry import Registry
from streams.contract.artifact import key_id
from streams.contract.decisions import Decision, Release
from streams.contract.documents import RoundEvent
from streams.contract.errors import ProcessFailed, UsageError
from streams.contract.task import load_task
from streams.contract.topics import RELEASES, ROUNDS, WINDOWS, topic_name, topic_specs
from streams.contract.window_metrics import WindowMetric
from streams.contract.window_report import ModelWindow
from streams.fleet.following import last_snapshot
from streams.kafka.admin import ensure_topics
from streams.kafka.producer import Producer
from streams.kafka.reader import Reader
from streams.kafka.settings import BrokerSettings
from streams.runtime.failpoints import unarmed
from streams.runtime.trust import Acceptance, create_key, write_private_key
from tests.rig.made_up.documents import window_report
from tests.rig.made_up.killed import Killed, killed_at
from tests.rig.made_up.own_task import own_task
from tests.rig.made_up.registries import controller_settings, model
from tests.rig.processes.polling import until

pytestmark = pytest.mark.kafka

KILLED = """
import faulthandler, logging, sys
from kafka import KafkaConsumer
from kafka.coordinator.assignors.sticky.sticky_assignor import StickyPartitionAssignor
from streams.kafka import patches
address, group, topic = sys.argv[1:]
patches.install()
logging.basicConfig(level=logging.INFO)  # shown where the test fails
faulthandler.dump_traceback_later(120, exit=True)  # with the stacks of a member that does not lead
member = KafkaConsumer(
    topic, bootstrap_servers=address, group_id=group, session_timeout_ms=18_000,
    partition_assignment_strategy=[StickyPartitionAssignor],
)
while not member.assignment():
    member.poll(100)
faulthandler.cancel_dump_traceback_later()
print("leads", flush=True)
member.poll(600_000)
"""


@dataclass(frozen=True)
class StandInFlower(Submission):
    """Hands out run ids and answers with what the test says of them."""

    started: list[Mapping[str, ConfigValue]] = field(default_factory=list)
    answers: dict[str, str] = field(default_factory=dict)

    def start(self, config: Mapping[str, ConfigValue], folder: Path) -> str:
        if "refuse" in self.answers:
            raise ProcessFailed("`flwr run` failed: no route")
        self.started.append(config)
        return f"r{len(self.started)}"

    def runs(self) -> dict[str, str]:
        started = {f"r{n}": "running" for n in range(len(self.started), 0, -1)}
        return started | {run: answer for run, answer in self.answers.items() if answer}


@dataclass
class Rig:
    """One task of its own on the cluster, its registry, and what the controller has said."""

    name: str
    registry: Registry
    settings: ControllerSettings
    flower: StandInFlower
    broker: BrokerSettings
    producer: Producer
    reader: Reader
    key_path: Path
    events: list[RoundEvent] = field(default_factory=list)
    releases: list[Decision] = field(default_factory=list)
    running: list[tuple[threading.Thread, threading.Event]] = field(default_factory=list)

    def start(self, **changes: object) -> threading.Event:
        """Run a controller in a thread; it is stopped at the end at the latest. The event is set
        when it dies, too."""
        settings = replace(self.settings, **changes)  # type: ignore[arg-type]
        stop = threading.Event()

        def work() -> None:
            try:
                controller.run(settings, stop)
            except Killed:
                stop.set()
            if stop.is_set():
                close_what_is_left()

        thread = threading.Thread(target=work, name=self.name)
        thread.start()
        self.running.append((thread, stop))
        return stop

    def stop(self) -> None:
        for thread, stop in self.running:
            stop.set()
            thread.join(20)
            assert not thread.is_alive()

    def serve(self, number: int) -> str:
        """Keep and serve a new model version."""
        key = create_key(self.key_path)
        made = model(self.registry, number, key).model
        self.registry.serve(made, key, f"version {number}")
        return made

    def look(self) -> None:
        for message in self.reader.poll(0.1):
            if message.topic.endswith(ROUNDS):
                self.events.append(RoundEvent.decode(message.value))
            elif message.key == self.name.encode():
                self.releases.append(Release.decode(message.value).decision)

    def wait(self, what: str, condition: Callable[[], bool]) -> None:
        def held() -> bool:
            self.look()
            return condition()

        until(held, what, 30)

    def say(self, kind: str, run: str, reason: str = "", time_us: int = 1) -> None:
        event = RoundEvent.of_fields(
            {"run": run, "kind": kind, "time_us": time_us, "reason": reason}
        )
        self.producer.put(topic_name(self.name, ROUNDS), run.encode(), event.encode())

    def window(
        self, number: int, model: str, agreeing: int, metric: WindowMetric = "accuracy"
    ) -> None:
        part = ModelWindow(events=10, compared=10, agreeing=agreeing)
        about = {"task": self.name, "metric": metric}
        report = window_report(f"d{number % 2}", number, {model: part}, **about)
        topic = topic_name(self.name, WINDOWS)
        self.producer.put(topic, report.device.encode(), report.encode())

    def disagree_until(self, model: str, condition: Callable[[], bool]) -> None:
        numbers = iter(range(1000))

        def held() -> bool:
            self.window(next(numbers), model, 2)
            return condition()

        self.wait("the controller acts", held)

    def kinds(self) -> list[tuple[str, str]]:
        return [(event.run, event.kind) for event in self.events]

    def reasons(self, kind: str) -> dict[str, str]:
        return {event.run: event.reason for event in self.events if event.kind == kind}


@pytest.fixture
def rig(kafka: BrokerSettings, tmp_path: Path) -> Iterator[Rig]:
    reference = own_task(tmp_path)
    task = load_task(reference)
    name = task.id
    key_path = tmp_path / "signing.pem"
    key = create_key(key_path)
    ensure_topics(kafka, topic_specs(name))
    registry = Registry(tmp_path / "registry", task.name, 1, [key.public_key()])
    flower = StandInFlower(Flwr("flwr", "tidewheel"), tmp_path)
    more = {"run_config": {"rounds": 2}, "min_events": 20, "min_interval_s": 0.0}
    settings = controller_settings(reference, kafka, tmp_path, flower, key_path, **more)
    producer = Producer(kafka)
    reader = Reader(kafka, [topic_name(name, ROUNDS), topic_name(name, RELEASES)])
    made = Rig(name, registry, settings, flower, kafka, producer, reader, key_path)
    yield made
    made.stop()
    reader.close()
    producer.close()


def close_what_is_left() -> None:
    """As the end of a process does: sockets of a killed controller are nobody's."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


def test_the_superlink_is_wanted_from_a_quarter_of_the_evidence_on(rig: Rig) -> None:
    first = rig.serve(1)
    wanted = rig.settings.state / "controller" / "superlink-wanted"
    rig.start(min_events=160)
    for number in range(4):
        rig.window(number, first, 8)
    rig.wait("it is wanted before the run is due", wanted.exists)
    assert not rig.flower.started
    for number in range(4, 10):
        rig.window(number, first, 10)
    rig.wait("not for good answers", lambda: not wanted.exists())
    assert not rig.flower.started


def test_the_superlink_is_wanted_from_the_cause_of_a_run_to_its_end(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    awake = threading.Event()
    first = rig.serve(1)
    wanted = rig.settings.state / "controller" / "superlink-wanted"
    rig.start(runs_per_day=1, submission=replace(rig.flower, ready=awake.is_set))
    rig.disagree_until(first, lambda: "waiting for the SuperLink" in caplog.text)
    assert wanted.exists()
    assert not rig.flower.started
    awake.set()
    rig.wait("the run is requested", lambda: ("r1", "requested") in rig.kinds())
    assert wanted.exists()
    rig.say("finished", "r1")
    rig.wait("it is not wanted", lambda: not wanted.exists())


def test_it_announces_starts_a_run_with_its_reason_and_announces_what_came_of_it(rig: Rig) -> None:
    first = rig.serve(1)
    rig.start(runs_per_day=1)
    rig.wait("the served model is announced", lambda: len(rig.releases) == 1)
    assert rig.releases[0].model == first
    rig.disagree_until(first, lambda: bool(rig.flower.started))
    rig.wait("the request is told", lambda: ("r1", "requested") in rig.kinds())
    assert f"agreement with the teacher of {first} is 0.200" in rig.events[0].reason
    assert rig.flower.started == [{"task": rig.settings.task_ref, "rounds": 2}]
    second = rig.serve(2)
    rig.say("finished", "r1", "promoted")
    rig.wait("the new model is announced", lambda: len(rig.releases) == 2)
    assert (rig.releases[1].model, rig.releases[1].seq) == (second, 2)


def test_a_run_gets_the_task_file_that_its_controller_has_loaded(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The SuperExec runs in another folder, where a file of this name may be another version."""
    monkeypatch.chdir(Path(rig.settings.task_ref).parent)
    rig.serve(1)
    rig.start(task_ref="task.py:task", runs_per_day=1, schedule_s=0.0)
    rig.wait("a run starts", lambda: bool(rig.flower.started))
    assert rig.flower.started[0]["task"] == rig.settings.task_ref


@pytest.mark.parametrize(
    ("answer", "word"),
    [
        ("finished:stopped", "stopped by a user"),
        ("finished:completed", "the run ended without a result"),
    ],
)
def test_a_run_that_was_stopped_by_hand_or_ended_well_is_not_taken_up(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, answer: str, word: str
) -> None:
    """Also one that goes on with another."""
    monkeypatch.setattr(run_tracker, "SILENCE_S", 0.3)
    rig.flower.answers.update({"r0": answer, "r1": "finished:failed", "r2": "finished:stopped"})
    rig.serve(1)
    rig.say("started", "r0")
    rig.start(runs_per_day=1, schedule_s=0.0)
    rig.wait("both are over", lambda: {"r0", "r2"} <= rig.reasons("finished").keys())
    told = rig.reasons("finished")
    assert told["r0"] == f"{word} ({answer})"
    assert told["r2"] == "stopped by a user (finished:stopped)"
    assert [config.get("resume") for config in rig.flower.started] == [None, "r1"]
    kept = rig.settings.state / "controller" / "lineage.json"
    rig.wait("it is forgotten, once that is told", lambda: not kept.exists())


@pytest.mark.parametrize(("step", "began"), [(1, False), (2, True), (3, True), (4, False)])
def test_a_controller_that_dies_takes_a_run_up_once(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, step: int, began: bool
) -> None:
    """Also if the new run has said something before the next controller is there."""

    rig.serve(1)
    rig.say("started", "r9")
    rig.flower.answers["r9"] = "finished:failed"
    dies = killed_at(f"resume-step-{step}")
    monkeypatch.setattr(controller, "read_failpoint", lambda _environ: dies)
    died = rig.start()
    rig.wait("the controller dies", died.is_set)
    monkeypatch.setattr(controller, "read_failpoint", lambda _environ: unarmed)
    if began:
        rig.say("started", "r1")
    rig.start()
    rig.wait("the end is told", lambda: ("r9", "finished") in rig.kinds())
    rig.say("rejected", "r1")
    rig.say("finished", "r1")
    rig.wait("the run ends", lambda: ("r1", "finished") in rig.kinds())
    lineage = rig.settings.state / "controller" / "lineage.json"
    rig.wait("nothing is left to do", lambda: not lineage.exists())
    assert [config["resume"] for config in rig.flower.started] == ["r9"]
    assert rig.reasons("requested") == {
        "r1": "resumes run r9: the run ended without a result (finished:failed): see `flwr log RUN`"
    }


@pytest.mark.parametrize("step", [1, 2, 3])
def test_a_controller_that_waited_while_the_one_before_died_takes_a_run_up_once(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    rig.serve(1)
    waited = controller.Controller(rig.settings, load_task(rig.settings.task_ref))
    rig.say("started", "r9")
    rig.flower.answers["r9"] = "finished:failed"
    dies = killed_at(f"resume-step-{step}")
    monkeypatch.setattr(controller, "read_failpoint", lambda _environ: dies)
    died = rig.start()
    rig.wait("the leader dies", died.is_set)
    stop = threading.Event()
    thread = threading.Thread(target=waited.follow, args=(stop,), name=rig.name)
    thread.start()
    rig.running.append((thread, stop))
    rig.wait("the end is told", lambda: ("r9", "finished") in rig.kinds())
    assert [config["resume"] for config in rig.flower.started] == ["r9"]
    assert list(rig.reasons("requested")) == ["r1"]


def test_a_run_that_flower_refuses_is_tried_again_later(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    first = rig.serve(1)
    rig.flower.answers["refuse"] = ""
    rig.start()
    rig.disagree_until(first, lambda: "no route" in caplog.text)
    rig.disagree_until(first, lambda: "the last attempt failed less than 10 s ago" in caplog.text)


def test_by_hand_a_run_starts_whatever_the_budgets_once(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    rig.serve(1)
    stop = rig.start(runs_per_day=0)
    said = ask_for_run(rig.broker, rig.name, "new phones")
    assert said.startswith(f"requested a run of {rig.name} (new phones); the controller")
    rig.wait("the run is told", lambda: ("r1", "requested") in rig.kinds())
    assert rig.reasons("requested")["r1"] == "manual: new phones"
    rig.say("finished", "r1", "rejected")
    stop.set()
    caplog.clear()
    rig.start(runs_per_day=0, schedule_s=0.0)  # it reads of what was asked, and of the run
    rig.wait("it is held back", lambda: "but held back" in caplog.text)
    assert len(rig.flower.started) == 1


def test_a_restarted_controller_knows_todays_runs(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    first = rig.serve(1)
    stop = rig.start(runs_per_day=1)
    rig.disagree_until(first, lambda: bool(rig.flower.started))
    rig.say("finished", "r1", "rejected", time.time_ns() // 1000)  # maybe before "requested"
    rig.wait("it has ended", lambda: "run r1 finished" in caplog.text)
    stop.set()
    rig.start(runs_per_day=1)
    held = "1 runs began in the last 24 hours, 1 are allowed (--runs-per-day)"
    rig.disagree_until(first, lambda: ("", "postponed") in rig.kinds())
    due = f"agreement with the teacher of {first} is"
    assert rig.reasons("postponed")[""].startswith(f"{held}. It is due because {due}")
    assert len(rig.flower.started) == 1
    assert caplog.text.count(held) == 1


def test_a_new_controller_has_the_evidence_of_the_one_before(rig: Rig) -> None:
    """It counts the windows that came before it: where controllers are killed all the time, none
    would see enough of them."""
    first = rig.serve(1)
    for number in range(30):
        rig.window(number, first, 2)
    rig.start()
    rig.wait("a run starts", lambda: ("r1", "requested") in rig.kinds())
    assert "0.200 at worst on 2 devices (d0, d1)" in rig.reasons("requested")["r1"]


def test_a_report_that_comes_again_counts_once(rig: Rig) -> None:
    """After a controller's snapshot, before it, and on both sides of it."""

    def known(windows: int) -> bool:
        view = last_snapshot(rig.broker, rig.name, 5.0)
        return view is not None and view.windows == windows

    first = rig.serve(1)
    for number in (*range(50), *range(50)):
        rig.window(number, first, 2)
    stop = rig.start(min_events=600)
    rig.wait("500 events are known", lambda: known(50))  # it publishes what it has looked at
    stop.set()
    for number in range(40, 55):
        rig.window(number, first, 2)
    rig.start(min_events=600)
    rig.wait("550 events are known", lambda: known(55))
    assert rig.flower.started == []
    for number in range(55, 60):
        rig.window(number, first, 2)
    rig.wait("a run starts", lambda: ("r1", "requested") in rig.kinds())


def test_nothing_to_serve_is_said_at_the_start(rig: Rig) -> None:
    with pytest.raises(UsageError, match="serves no model"):
        controller.run(rig.settings, threading.Event())


def test_a_controller_that_does_not_lead_changes_no_settings_of_runs(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    """As one of the same state folder that was started with a wrong --kafka."""
    app = rig.settings.state / "app.toml"
    rig.serve(1)
    rig.start(submission=replace(rig.flower, files={app: b"right"}))
    rig.wait("the one that leads has written them", app.exists)
    wrong = replace(rig.flower, files={app: b"wrong"})
    rig.start(submission=wrong, broker=BrokerSettings.at("127.0.0.1:1"))
    rig.wait("the other one finds no broker", lambda: "no Kafka broker answers" in caplog.text)
    assert app.read_bytes() == b"right"


def test_a_controller_that_waits_says_for_what_and_when_it_leads(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    """The first waits for one that was killed, which the broker notices after 18 s; the second
    waits for the first."""
    caplog.set_level(logging.INFO)
    group, topic = f"tidewheel-{rig.name}-controller", topic_name(rig.name, RELEASES)
    command = [sys.executable, "-c", KILLED, rig.broker.bootstrap, group, topic]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as killed:
        try:
            assert killed.stdout is not None
            assert killed.stdout.readline() == b"leads\n"
        finally:
            killed.kill()
    rig.serve(1)
    first = rig.start()
    rig.wait("it waits", lambda: "no controller of" in caplog.text)
    rig.wait("it leads", lambda: "leads now" in caplog.text)
    assert "another controller" not in caplog.text
    caplog.clear()
    rig.start()
    rig.wait("the second waits", lambda: "another controller of" in caplog.text)
    assert "no controller" not in caplog.text
    first.set()
    rig.wait("the second leads", lambda: "this controller of" in caplog.text)


def test_a_controller_follows_a_rotation_of_keys_while_it_runs(rig: Rig) -> None:
    """It has no file of the new key, and signs with it as soon as that is in use."""
    rig.serve(1)
    model(rig.registry, 9, create_key(rig.key_path), kind="teacher")
    rig.start()
    rig.wait("the teacher is told of", lambda: len(rig.releases) == 1)
    old, new = create_key(rig.key_path), Ed25519PrivateKey.generate()
    key_rotation.trust(rig.registry, old, new.public_key())
    write_private_key(new, rig.key_path)
    key_rotation.hand_over(rig.registry, new)
    key_rotation.revoke(rig.registry, new, key_id(old.public_key()))
    rig.wait("it is told", lambda: bool(rig.releases[-1].standing.revoked))
    model(rig.registry, 20, new, kind="teacher")
    rig.wait("the controller decides", lambda: rig.releases[-1].kind == "teacher")
    assert rig.releases[-1].key == key_id(new.public_key())
    device = Acceptance(None, load_task(rig.settings.task_ref), [old.public_key()])
    accepted = [device.accept(said).seq for said in rig.registry.history()]
    assert accepted == list(range(1, len(accepted) + 1))
    assert [key_id(key) for key in device.trusted] == [key_id(new.public_key())]


@pytest.mark.filterwarnings("ignore")  # MLflow's own
def test_what_happens_on_rounds_is_in_mlflow_while_a_controller_leads(
    rig: Rig, tmp_path: Path
) -> None:
    from mlflow import MlflowClient

    uri, model_name = (tmp_path / "mlruns").as_uri(), "2-bbbbbbbb"
    rig.serve(1)
    stop = rig.start(mlflow=uri)
    topic = topic_name(rig.name, ROUNDS)
    for at, kind in enumerate(("started", "aggregated", "promoted", "finished"), 1):
        about = {"run": "7", "kind": kind, "time_us": at, "base": "1-aaaaaaaa", "round": 1}
        event = RoundEvent.of_fields(about | ({"model": model_name} if at == 3 else {}))
        rig.producer.put(topic, b"7", event.encode())

    def statuses() -> list[tuple[str, str | None]]:
        client = MlflowClient(tracking_uri=uri)
        found = client.get_experiment_by_name(f"tidewheel/{rig.name}")
        runs = client.search_runs([found.experiment_id]) if found else []
        return [(run.info.status, run.data.tags.get("tidewheel.model")) for run in runs]

    until(lambda: statuses() == [("FINISHED", model_name)], "the run is in MLflow", 60)
    stop.set()
