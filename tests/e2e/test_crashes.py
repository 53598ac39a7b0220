"""Real processes that are really killed, and what the account says afterwards."""

import contextlib
import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from compose.launcher import broker
from compose.launcher.preparation import make_models
from compose.launcher.state_dir import StateDir
from edge_client.spool.queue import Spool
from edge_client.uplink.task_queues import SPOOL, queue_folder
from federation.bootstrap.dataset import segments_of_device
from streams.contract.documents import DeviceState
from streams.contract.task import load_task
from streams.contract.topics import FLEET, topic_name
from streams.kafka.reader import Reader
from streams.kafka.settings import BrokerSettings
from tests.rig.processes.fleet import Place, Running, check_account, until
from tests.rig.servers.kafka import serving

WORKER = ("-m", "compose.cli.main", "worker")
KAFKA = ("kafka.Kafka",)


def edge(place: Place, device: str) -> tuple[str, ...]:
    return ("-m", "compose.cli.main", "edge", "run", place.task, "--device", device)


def comes_back(place: Place, words: tuple[str, ...], killed: int) -> None:
    until(lambda: place.find(*words) not in (None, killed), f"another {words}")


def goes_on(place: Place, device: str, more: int) -> None:
    """Wait until so many more of the device's events are in the store."""
    before = place.scored(device)
    until(lambda: place.scored(device) >= before + more, f"{more} more events of {device}")


@pytest.mark.kafka
@pytest.mark.timeout(1200)
def test_kills_during_the_loop_leave_the_account_exact_and_a_second_run_goes_on(
    kafka_place: Place,
) -> None:
    """Agent, worker and broker are killed; a third device stands still before it has reached the
    broker: it is named, and the run does not count as whole."""
    place = kafka_place
    running = place.up("up", "--devices", "3", "--speed", "30", "--rounds", "1")
    until(lambda: place.find(*edge(place, "d2")), "the agent of d2 starts", 180)
    silent = place.find(*edge(place, "d2"))
    assert silent is not None
    os.kill(silent, signal.SIGSTOP)
    until(lambda: place.scored("d0") > 50 and place.scored("d1") > 50, "events are scored", 180)

    agent = place.kill(*edge(place, "d0"))
    running.until_said("edge-d0 killed by SIGKILL; it is started again")
    comes_back(place, edge(place, "d0"), agent)
    goes_on(place, "d0", 100)

    worker = place.kill(*WORKER)
    running.until_said("worker killed by SIGKILL; it is started again")
    comes_back(place, WORKER, worker)
    goes_on(place, "d1", 100)

    kafka = place.kill(*KAFKA)
    agent = place.kill(*edge(place, "d0"))  # its events can only be in the spool
    running.until_said("broker killed by SIGKILL; it is started again")
    comes_back(place, KAFKA, kafka)
    comes_back(place, edge(place, "d0"), agent)
    goes_on(place, "d0", 100)
    goes_on(place, "d1", 100)

    running.until_said("d2 reported nothing yet; ")
    running.signal(signal.SIGTERM)
    running.until_said("drain  ")
    os.kill(silent, signal.SIGKILL)  # `up` would wait 25 s for it
    assert running.ends(120) == 1, running.told
    place.nothing_is_left()
    summary = running.summary()
    assert json.loads((place.state / "summary.json").read_text()) == summary
    check_account(place, summary)
    restarts = summary["restarts"]
    assert (restarts["edge-d0"], restarts["broker"]) == (2, 1)
    assert restarts["worker"] >= 1  # an outage of the broker may end it once more
    assert "edge-d1" not in restarts
    produced = {line["device"]: line["produced"] for line in summary["devices"]}
    assert produced.keys() == {"d0", "d1"}
    assert min(produced.values()) > 300
    assert summary["silent"] == ["d2"]
    said = {problem["text"]: problem["advice"] for problem in summary["problems"]}
    assert said["d2 reported nothing since the start"] == f"See {place.state}/logs/edge-d2.log"
    assert running.said.count("d2 reported nothing yet; ") == 1
    goes_on_where_it_was(place, summary)


def goes_on_where_it_was(place: Place, first: dict[str, Any]) -> None:
    """A second run on the same state folder."""
    before = {line["device"]: line for line in first["devices"]}
    running = place.up("second", "--devices", "2", "--speed", "30", "--minutes", "0.15")
    assert running.ends(180) == 0, running.told
    place.nothing_is_left()
    summary = running.summary()
    check_account(place, summary)
    assert summary["restarts"] == {}
    assert {line["device"] for line in summary["devices"]} == before.keys()
    for line in summary["devices"]:
        device = line["device"]
        assert line["epoch"] == before[device]["epoch"]
        assert line["produced"] > before[device]["produced"] > 0
        times = place.rows(f"select time from scores where device = '{device}' order by seq")
        assert times == sorted(times)
        assert len(times) == len(set(times))  # the replay went on, it did not begin again


@contextlib.contextmanager
def own_kafka(place: Place, choice: broker.BrokerChoice) -> Iterator[BrokerSettings]:
    with serving(choice, place.state, place.folder / "broker.log"):
        yield choice.settings


def produced_in_spool(folder: Path, copy: Path) -> int:
    """How many events a running device's spool holds, read from a copy of it."""
    shutil.rmtree(copy, ignore_errors=True)
    if not (folder / "epoch").exists() or not list(folder.glob("*.seg")):
        return 0
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns(".*"))
    return Spool(copy).account().produced


@pytest.mark.kafka
@pytest.mark.timeout(1200)
def test_devices_infer_while_the_broker_is_absent_and_nothing_is_missing(
    kafka_place: Place,
) -> None:
    place, devices = kafka_place, ("d0", "d1")
    task = load_task(place.task)
    prepared = StateDir(place.folder / "prepared")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIDEWHEEL_CACHE", str(place.cache))
        model = make_models(place.task, task, prepared, lambda _text: None)
    choice = broker.choose(place.state, None, place.environ)  # a port where nobody listens yet
    where = ["--kafka", choice.settings.bootstrap, "--trust", prepared.public_key]
    artifact = prepared.registry / "models" / f"{model}.twa"
    edges: dict[str, Running] = {}
    for device in devices:
        state = ["--device", device, "--state", place.folder / device, "--model", artifact]
        pace = ["--speed", "200", "--passes", "1", "--stay"]
        edges[device] = place.start(device, "edge", "run", place.task, *state, *pace, *where)

    expected = {device: len(segments_of_device(task, device).times) for device in devices}
    for device in devices:
        spool = queue_folder(StateDir(place.folder / device).device(device), SPOOL, task)
        until(
            lambda s=spool, d=device: produced_in_spool(s, place.folder / "copy") == expected[d],  # type: ignore[misc]
            f"{device} has answered {expected[device]} segments without a broker",
        )
        assert edges[device].process.poll() is None

    with own_kafka(place, choice) as settings:
        teacher = ["--teacher", prepared.registry / "teacher.twa", "--store", place.store]
        folder = ["--state", place.folder / "worker"]
        worker = place.start("worker", "worker", place.task, *folder, *teacher, *where)
        until(lambda: place.scored() >= sum(expected.values()), "everything is scored")
        for running in (*edges.values(), worker):
            running.signal(signal.SIGTERM)
            assert running.ends(60) == 0, running.told
        states = last_states(settings)
    place.nothing_is_left()
    for device, count in expected.items():
        state = states[device]
        account = (state.produced, state.delivered, state.pending, state.dropped, state.phase)
        assert account == (count, count, 0, {}, "stopped")
        rows = place.rows(f"select epoch, seq from scores where device = '{device}' order by seq")
        assert rows == [(state.epoch, seq) for seq in range(count)]
    assert place.rows("select * from drops") == []


def last_states(settings: BrokerSettings) -> dict[str, DeviceState]:
    reader = Reader(settings, [topic_name("tiny.v1", FLEET)])
    try:
        messages = reader.read_to_end()
    finally:
        reader.close()
    return {s.device: s for s in (DeviceState.decode(message.value) for message in messages)}


@pytest.mark.kafka
def test_ctrl_c_during_the_set_up_leaves_no_process(kafka_place: Place, tmp_path: Path) -> None:
    kafka_place.cache = tmp_path / "cache"  # an empty one, so that the set-up takes its time
    running = kafka_place.up("up", "--devices", "2")
    running.until_said("exporting the device")
    running.signal(signal.SIGINT)
    assert running.ends(60) == 130, running.said
    kafka_place.nothing_is_left()
    assert "stopped before the fleet had started" in running.said
    assert "Traceback" not in running.said
    assert running.out.read_text() == ""


@pytest.mark.kafka
def test_ctrl_c_before_a_device_has_reported_ends_without_a_summary(kafka_place: Place) -> None:
    place = kafka_place
    running = place.up("up", "--devices", "1")
    until(lambda: place.find(*edge(place, "d0")), "the agent of d0 starts", 180)
    agent = place.find(*edge(place, "d0"))
    assert agent is not None
    os.kill(agent, signal.SIGSTOP)  # it cannot report
    running.until_said("rollout ")
    running.signal(signal.SIGINT)
    running.until_said("stopped before the fleet had started")
    os.kill(agent, signal.SIGCONT)
    assert running.ends(60) == 130, running.said
    place.nothing_is_left()
    assert running.said.endswith("stopped before the fleet had started\n")
    assert running.out.read_text() == ""
