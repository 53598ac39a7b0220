"""The whole loop through the real command: one file in, a better model on every device out."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from compose.launcher import flower_processes
from tests.rig.processes.fleet import Place, Running, check_account
from tests.rig.processes.flower import journals
from tests.rig.processes.polling import until
from tests.rig.servers.collector import Collector, collecting

LOOP = ["--devices", "3", "--until-closed", "--speed", "30", "--rounds", "2", "--timeout", "720"]


@pytest.mark.kafka
@pytest.mark.timeout(1200)
@pytest.mark.usefixtures("executed")
def test_a_task_in_one_file_runs_the_whole_loop_on_a_real_kafka(kafka_place: Place) -> None:
    with collecting() as collector:
        kafka_place.environ = {**kafka_place.environ, **collector.environ()}
        running = kafka_place.up("up", *LOOP)
        running.until_said("3 serve 1-", 150)
        check_status(kafka_place)
        running.until_said(" started: agreement with the teacher of 1-")
        check_flwr_list(kafka_place, running)
        running.until_said("goes to stage 1: offered to", 200)
        kafka_place.kill("-m", "compose.cli.main", "controller")  # another goes on with the rollout
        check_closed(kafka_place, running, restarts={"controller": 1})
    check_traces(collector)


def check_traces(collector: Collector) -> None:
    """Spans of every kind have come, each with its parent; a run that was interrupted at the end,
    and a message that was sent twice, are left out."""
    whole = {span.trace for span in collector.spans if not span.parent}
    spans = {span.span: span for span in collector.spans if span.trace in whole}
    parents = {span.name: set[str]() for span in spans.values()}
    for span in spans.values():
        parents[span.name].add(spans[span.parent].name if span.parent else "")
        assert not span.parent or spans[span.parent].trace == span.trace
    assert parents == {
        "device.deliver": {""},
        "worker.window": {"device.deliver"},
        "run": {""},
        "run.round": {"run"},
        "run.gate": {"run"},
        "device.fit": {"run.round"},
        "device.evaluate": {"run.gate"},
    }


def check_status(place: Place) -> None:
    """`tidewheel status --json` of the running fleet, once all devices have told of an event: that
    they serve a version is told at once, counters every few seconds."""
    status: dict[str, Any] = {}

    def told() -> bool:
        text = place.tidewheel("status", place.task, "--state", place.state, "--json")
        status.update(json.loads(text))
        known = status["devices"]
        return len(known) == 3 and all(device["produced"] for device in known)

    until(told, "every device has told of an event")
    assert status["task"] == "tiny.v1"
    assert [device["device"] for device in status["devices"]] == ["d0", "d1", "d2"]
    assert {device["active"] for device in status["devices"]} == {
        status["release"]["stable"]["model"]
    }
    for device in status["devices"]:
        lost = sum(device["dropped"].values())
        assert device["produced"] == device["delivered"] + lost + device["pending"]
        assert device["produced"] > 0
    counted = {"aggregated", "admitted", "refused", "failed", "promoted", "rejected"}
    assert set(status["rounds"]) == counted
    assert set(status["agreement"]) <= {status["release"]["stable"]["model"]}


def check_flwr_list(place: Place, running: Running) -> None:
    """Flower's own command sees the run that is going on."""
    run = running.said.partition(" started: agreement")[0].rpartition("run ")[2]
    home = str(place.state / "flower" / "home")
    command = [flower_processes.program("flwr"), "list", "tidewheel", "--format", "json"]
    listed = json.loads(place.run(*command, FLWR_HOME=home, FLWR_TELEMETRY_ENABLED="0"))
    [entry] = listed["runs"]
    assert str(entry["run-id"]).endswith(run)  # texts have its last digits
    assert len(run) == 6


def check_closed(place: Place, running: Running, restarts: dict[str, int]) -> None:
    """The loop has closed: the fleet learned, every device serves it, the account adds up."""
    assert running.ends(300) == 0, running.told
    place.nothing_is_left()
    summary = running.summary()
    assert json.loads((place.state / "summary.json").read_text()) == summary
    assert summary["closed"] is True
    check_learning(summary, place.state)
    check_account(place, summary)
    assert summary["restarts"] == restarts
    kinds = [text.partition(" ")[0] for text in summary["decisions"]]
    assert kinds[:3] == ["served", "candidate", "stage"]
    assert kinds[-1] == "served"
    assert kinds.count("candidate") == 1
    totals = {name: sum(d[name] for d in summary["devices"]) for name in ("produced", "scored")}
    assert totals["produced"] == totals["scored"] > 0
    check_query(place, totals["scored"])


def check_learning(summary: dict[str, Any], state: Path) -> None:
    assert [line["device"] for line in summary["devices"]] == ["d0", "d1", "d2"]
    assert {line["active"] for line in summary["devices"]} == {summary["last_model"]}
    assert summary["first_model"].startswith("1-")
    assert int(summary["last_model"].partition("-")[0]) >= 2
    assert summary["rounds"]["aggregated"] >= 1
    assert summary["rounds"]["admitted"] >= 2
    assert summary["rounds"]["refused"] == 0, [
        event.reason for run in journals(state) for event in run if event.kind == "refused"
    ]
    before, after = summary["fleet"]
    assert after > before
    held_out = next(run["metrics"] for run in summary["runs"] if run["kind"] == "promoted")
    assert held_out["audit"] > held_out["audit_base"]
    agreement = summary["agreement"]
    assert agreement[summary["last_model"]] > agreement[summary["first_model"]]


def check_query(place: Place, scored: int) -> None:
    """`tidewheel query` on the store that the run has left, by the line that it recommends."""

    def ask(sql: str) -> list[dict[str, Any]]:
        text = place.tidewheel("query", sql, "--state", place.state, "--json")
        return [json.loads(line) for line in text.splitlines()]

    found = ask(
        "select count(*) as events, count(distinct (device, epoch, seq)) as different from scores"
    )
    assert found == [{"events": scored, "different": scored}]
    models = ask("select distinct model from scores order by model")
    versions = sorted({entry["model"].partition(".")[0] for entry in models})  # adapters' answers
    assert [version[:2] for version in versions][:2] == ["1-", "2-"]
    sql = json.loads((place.state / "summary.json").read_text())["sql"]
    assert sql.startswith(f"tidewheel query --state {place.state} ")
    assert len(ask(sql.partition('"')[2].rstrip('"'))) >= 6  # three devices, two versions


def test_the_package_is_not_needed_where_the_task_lies(embedded_place: Place) -> None:
    """The task's folder holds one file, and the command is the installed one."""
    assert [path.name for path in embedded_place.folder.glob("*.py")] == ["machines.py"]
    assert "up" in embedded_place.run(Path(sys.executable).parent / "tidewheel", "--help")
