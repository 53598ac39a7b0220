"""What `tidewheel rounds` and `releases` print, as a table and as JSON, from topics, event logs and
registry."""

import json
import threading
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from compose.launcher.state_dir import StateDir
from compose.reports import releases, rounds
from federation.registry import publisher
from federation.registry.registry import Registry
from streams.contract.documents import RoundEvent
from streams.contract.task import load_task
from streams.contract.topics import topic_specs
from streams.kafka.admin import ensure_topics
from streams.kafka.producer import Producer
from streams.kafka.settings import BrokerSettings
from streams.runtime.key_files import create_key
from tests.compose.cli.test_cli import TINY, fails, port_without_listener, tidewheel
from tests.compose.messages import TASK, received, release
from tests.compose.reports.test_views import OFFERED, shown, view_of
from tests.rig.made_up.own_task import own_task
from tests.rig.made_up.registries import model, offer, serve

# --- rounds ---------------------------------------------------------------------------------------


def two_runs() -> list[RoundEvent]:
    """The first dies in its second round, the second goes on and is promoted."""
    clock = iter(range(1, 1000))

    def event(run: str, kind: str, number: int = 0, **fields: Any) -> RoundEvent:
        about = {"run": run, "kind": kind, "round": number, "time_us": next(clock)}
        return RoundEvent.model_validate({**about, **fields})

    def one_round(run: str, number: int, **fields: Any) -> list[RoundEvent]:
        figures = {"devices_before": 0.6 + number / 100, "seconds": 7.25, "epsilon": 1.5 * number}
        held_out = {"held_out": 0.7, "held_out_segments": 9}
        return [
            event(run, "started", number, metrics={"nodes": 3}, base="1-a", **fields),
            *(event(run, "admitted", number, device=f"d{n}", **fields) for n in (0, 1)),
            *(event(run, "refused", number, device=f"d{n}", reason=f"norm: {n} is over", **fields)
              for n in (2, 3)),
            event(run, "failed", number, device="d4", reason="no reply", **fields),
            event(run, "aggregated", number, metrics=figures, **fields),
            event(run, "evaluated", number, metrics=held_out, **fields),
        ]  # fmt: skip

    gate, on = {"held_out_base": 0.5, "held_out": 0.75}, {"resumed_from": "r1"}
    return [
        event("", "asked", reason="manual"),  # is no run
        event("r1", "requested", reason="agreement is low"),
        *one_round("r1", 1),
        event("r1", "started", 2, metrics={"nodes": 3}),
        event("r2", "resumed", 1, **on),
        *one_round("r2", 2, **on),
        event("r2", "evaluated", 2, metrics=gate, **on),
        event("r2", "promoted", 2, model="2-b", **on),
        event("r2", "finished", reason="promoted", **on),
    ]


def test_rounds_has_each_round_with_its_figures_as_table_and_json() -> None:
    events = two_runs()
    first, second = runs = rounds.history([*reversed(events), *events])  # twice, in any order
    assert (first.requested, first.base, first.outcome) == (
        "agreement is low", "1-a", "resumed by run r2",
    )  # fmt: skip
    assert asdict(first.rounds[0]) == {
        "number": 1, "nodes": 3, "admitted": 2, "failed": 1, "refused": {"norm": 2},
        "held_out": 0.7, "devices_before": 0.61, "seconds": 7.25, "epsilon": 1.5,
        "outcome": "averaged",
    }  # fmt: skip
    assert (second.resumed_from, second.outcome) == ("r1", "promoted 2-b")
    assert second.gate == {"held_out_base": 0.5, "held_out": 0.75}
    text = shown(lambda console: rounds.print_rounds(TASK, runs, console, as_json=False))
    assert "tiny: 2 runs, 3 rounds" in text
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines()[4:]]
    lines = [row for row in rows if row and row[1]]
    assert lines[0] == ["r1", "1", "3", "2", "norm 2, no answer 1", "0.70", "0.61", "7.2", "1.50",
                        "averaged"]  # fmt: skip
    assert [line[-1] for line in lines[1:]] == ["resumed by run r2", "promoted 2-b"]
    data = shown(lambda console: rounds.print_rounds(TASK, runs, console, as_json=True))
    assert json.loads(data)["runs"] == [asdict(run) for run in runs]


def test_rounds_reads_event_logs_up_to_where_a_kill_cut_them(tmp_path: Path) -> None:
    events = [event for event in two_runs() if event.run]
    for run in ("r1", "r2"):
        folder = tmp_path / ".tidewheel" / "runs" / run
        folder.mkdir(parents=True)
        lines = [e.encode() for e in events if e.run == run]
        (folder / "rounds.jsonl").write_bytes(b"\n".join(lines) + b'\n{"run": "r')
    assert rounds.from_journals(tmp_path / ".tidewheel" / "runs") == events
    done = tidewheel("rounds", TINY, "--json", folder=tmp_path)
    assert [run["run"] for run in json.loads(done.stdout)["runs"]] == ["r1", "r2"]
    away = tidewheel("rounds", TINY, "--kafka", "127.0.0.1:1", folder=tmp_path)
    fails(away, 1, "127.0.0.1:1")


# --- releases -------------------------------------------------------------------------------------


def kept(folder: Path, task: str = TASK) -> Registry:
    """One version served, the next on offer."""
    layout = StateDir(folder / ".tidewheel")
    key = create_key(layout.signing_key)
    registry = Registry(layout.registry, task, 1, [key.public_key()])
    serve(registry, model(registry, 1, key), key)
    offer(registry, model(registry, 2, key), key)
    return registry


def test_releases_has_each_decision_once_in_the_order_of_numbers() -> None:
    found = view_of(
        release(OFFERED, 2, key="tiny/00000002"), release("1-aaaaaaaa", 1, key="tiny/00000001"),
        release(OFFERED, 2), received("releases", TASK, b"garbage"),
    ).decided  # fmt: skip
    text = shown(lambda console: releases.print_decisions(TASK, found, console, as_json=False))
    assert "tiny: 2 decisions" in text
    data = shown(lambda console: releases.print_decisions(TASK, found, console, as_json=True))
    models = [(d["model"], d["evidence"]) for d in json.loads(data)["decisions"]]
    assert models == [("1-aaaaaaaa", {}), (OFFERED, {})]
    line = shown(lambda console: releases.print_decision(found[0], console, as_json=False))
    assert line.endswith("1 served 1-aaaaaaaa: a test\n")


def test_without_a_broker_releases_are_the_registrys(tmp_path: Path) -> None:
    kept(tmp_path)
    done = tidewheel("releases", TINY, "--offline", "--json", folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    data = json.loads(done.stdout)["decisions"]
    assert [(d["kind"], d["share"]) for d in data] == [("served", 0.0), ("stage", 0.05)]
    address = f"127.0.0.1:{port_without_listener()}"
    done = tidewheel("releases", TINY, "--kafka", address, folder=tmp_path)
    assert "2 decisions" in done.stdout
    assert address in done.stderr
    assert "read from .tidewheel/registry" in done.stderr
    done = tidewheel("releases", TINY, "--offline", "--follow", folder=tmp_path)
    fails(done, 2, "--follow", "--offline")


@pytest.mark.kafka
def test_releases_are_read_from_kafka_and_followed(kafka: BrokerSettings, tmp_path: Path) -> None:
    task = load_task(own_task(tmp_path))
    registry = kept(tmp_path, task.name)
    key = create_key(StateDir(tmp_path / ".tidewheel").signing_key)
    ensure_topics(kafka, topic_specs(task.id))
    with closing(Producer(kafka)) as producer:
        first = publisher.announce(producer, registry, None)
        found = releases.read_decisions(task, kafka, lambda: pytest.fail("Kafka answers"))
        assert [d.seq for d in found] == [1, 2]
        came: list[int] = []

        def watch() -> None:
            for decision in releases.follow(task, kafka):
                came.append(decision.seq)
                if len(came) == 3:
                    return

        thread = threading.Thread(target=watch)
        thread.start()
        registry.serve(registry.models()[1], key, "all")
        publisher.announce(producer, registry, first)
        thread.join(30)
    assert came == [1, 2, 3]
