"""The worker's promises on a real Kafka, with real processes that are really killed."""

import json
import re
import signal
import time
import urllib.request
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from streams.contract.events.messages import Drop
from streams.kafka.settings import BrokerSettings
from streams.worker.store.query import server_account
from tests.rig.processes.workers import (
    PARTITIONS,
    SECOND,
    Fleet,
    all_published,
    batch,
    check_topics,
    decoded_windows,
    device_on,
    fleet,
    labels,
    stop,
    until,
)

pytestmark = pytest.mark.kafka
LEFT, RIGHT = device_on(0), device_on(1)
ALL = list(range(PARTITIONS))


@pytest.fixture
def served(kafka: BrokerSettings, tmp_path: Path) -> Iterator[Fleet]:
    with fleet(kafka, tmp_path, source="live") as made:
        yield made


def send_seconds(served: Fleet, device: str, first: int, count: int, **epoch: str) -> None:
    """One event a second of event time, ten to a message."""
    for at in range(first, first + count, 10):
        served.send(
            batch(device, at, [float(at + i) for i in range(10)], task=served.task, **epoch)
        )


@pytest.mark.parametrize("form", ["arrow", "json"])
def test_events_are_scored_once_and_published_and_sigterm_ends_it(served: Fleet, form: str) -> None:
    served.options["scores"] = form
    worker = served.start()
    served.ready("w0", ALL)
    send_seconds(served, LEFT, 0, 60)
    send_seconds(served, RIGHT, 0, 60)
    send_seconds(served, LEFT, 0, 20)  # a repetition
    send_seconds(served, LEFT, 0, 20, epoch="e2")
    served.send(Drop(RIGHT, "e1", 60, 69, "full"))
    served.wait_until_scored()
    until(lambda: server_account(served.store)[RIGHT, "e1"] == (60, 10), "the drop is stored")
    check_topics(served)
    assert all((m.value or b"")[:1] == b"[" for m in served.read("scores")) == (form == "json")
    for message in served.read("windows"):
        assert message.partition == (0 if message.key == LEFT.encode() else 1)
    assert stop(worker) == 0


def test_sigkill_at_each_step_in_turn_loses_and_doubles_nothing(served: Fleet) -> None:
    sent = 0
    for step in range(1, 6):
        worker = served.start(failpoint=f"worker-step-{step}:2")
        while worker.poll() is None:
            assert sent < 600
            before = len(served.scored())
            send_seconds(served, LEFT, sent, 10)
            send_seconds(served, RIGHT, sent, 10)
            spans = [(sent + i, sent + i) for i in range(10)]
            served.send(labels(LEFT, sent, spans, task=served.task))
            known = [{"time_us": i, "label": 0} for i in range(10)]
            served.producer.put(f"{served.task.id}.labels", b"d0", json.dumps(known).encode())
            sent += 10
            until(
                lambda before=before, worker=worker: (  # type: ignore[misc]
                    worker.poll() is not None or len(served.scored()) > before
                ),
                f"a commit, or the death at step {step}",
            )
        assert worker.returncode == -signal.SIGKILL
    send_seconds(served, LEFT, sent, 10)
    served.send(labels(LEFT, 0, [(i, i) for i in range(10)], task=served.task))  # a repetition
    again = served.start()
    served.wait_until_scored()
    until(lambda: all_published(served), "all revisions are published")
    check_topics(served)
    assert stop(again) == 0
    found = sorted(served.labels())
    assert [each for each in found if each[1] == "l1"] == [(LEFT, "l1", n) for n in range(sent)]
    known = [each for each in found if each[1].startswith("kafka-")]  # type: ignore[misc]
    assert len(known) == len(set(known)) == sent


@pytest.mark.parametrize("window", ["Session(2, longest_s=9)", "Count(7)", "Sliding(15, 5)"])
def test_each_kind_of_windows_is_stored_and_reported_once_over_kills(
    kafka: BrokerSettings, tmp_path: Path, window: str
) -> None:
    with fleet(kafka, tmp_path, source="live", window=window) as served:
        sent = 0
        for step in (2, 3, 5):
            worker = served.start(failpoint=f"worker-step-{step}:2")
            while worker.poll() is None:
                assert sent < 600
                before = len(served.scored())
                send_seconds(served, LEFT, sent, 10)
                sent += 10
                until(
                    lambda before=before, worker=worker: (  # type: ignore[misc]
                        worker.poll() is not None or len(served.scored()) > before
                    ),
                    f"a commit, or the death at step {step}",
                )
            assert worker.returncode == -signal.SIGKILL
        again = served.start()
        served.wait_until_scored()
        until(lambda: all_published(served), "all revisions are published")
        check_topics(served)
        assert stop(again) == 0
        reports = decoded_windows(served.read("windows"))
        starts = sorted({start // SECOND for _, start, _ in reports})
        assert sum(copies[0].events for copies in reports.values()) == sent
        if window.startswith("Session"):
            assert all(later - start <= 10 for start, later in pairwise([*starts, sent]))
        sums = reports[max(reports)][0].sliding.values()
        last = {name: c[0] for name, c in reports.items() if name[1] // SECOND > starts[-1] - 15}
        if window.startswith("Sliding"):
            assert sum(each.events for each in sums) == sum(each.events for each in last.values())
        else:
            assert not sums


def test_another_worker_takes_over_from_one_that_is_killed(served: Fleet) -> None:
    first = served.start("w0")
    served.ready("w0", ALL)
    served.start("w1")
    until(
        lambda: (
            any(f"worker w0: ready, partitions [{p}]" in served.log("w0") for p in ALL)
            and any(f"worker w1: ready, partitions [{p}]" in served.log("w1") for p in ALL)
        ),
        "each worker has one partition",
    )
    send_seconds(served, LEFT, 0, 30)
    send_seconds(served, RIGHT, 0, 30)
    until(lambda: len(served.scored()) > 20, "some events scored")
    first.kill()
    send_seconds(served, LEFT, 30, 30)
    send_seconds(served, RIGHT, 30, 30)
    served.wait_until_scored()
    served.ready("w1", ALL)
    until(lambda: all_published(served), "all revisions are published")
    check_topics(served)


def ask(served: Fleet, path: str) -> str:
    """What the worker answers on its metrics port."""
    found = re.search(r"metrics on 127\.0\.0\.1:(\d+)", served.log("w0"))
    assert found is not None
    with urllib.request.urlopen(f"http://127.0.0.1:{found[1]}{path}", timeout=5) as answer:
        return str(answer.read().decode())


def test_a_worker_tells_prometheus_what_it_did(served: Fleet) -> None:
    served.options["metrics_port"] = 0
    served.start()
    served.ready("w0", ALL)

    def get(path: str) -> str:
        return ask(served, path)

    def says(line: str) -> bool:
        return line in get("/metrics").splitlines()

    send_seconds(served, LEFT, 0, 40)
    served.send(batch(RIGHT, 0, [1, 2, time.time() + 10_000], task=served.task))
    served.producer.put(f"{served.task.id}.events", b"d0", b"garbage", [])
    until(lambda: says("tidewheel_rows_total 42.0"), "the rows")
    until(lambda: says("tidewheel_open_rows 0.0"), "no open rows")
    assert says('tidewheel_windows_total{late="no"} 9.0')
    assert says('tidewheel_dead_letters_total{reason="not-json"} 1.0')
    assert says('tidewheel_dead_letters_total{reason="from-the-future"} 1.0')
    assert says('tidewheel_dropped_rows_total{reason="from-the-future"} 1.0')
    for partition in ALL:
        until(lambda p=partition: says(f'tidewheel_lag_messages{{partition="{p}"}} 0.0'), "no lag")  # type: ignore[misc]
    assert 'tidewheel_teacher_info{version="1-' in get("/metrics")
    assert get("/ready") == get("/live") == "yes\n"
    assert server_account(served.store)[RIGHT, "e1"] == (2, 1)
