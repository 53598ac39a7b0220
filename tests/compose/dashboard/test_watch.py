"""The watch of a real broker: it waits for topics, reads the past, and says what is missing."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from compose.dashboard.model import canary
from compose.dashboard.model.observed import Observed
from compose.dashboard.watch import Watch
from federation.rollout.stage_policy import StageVerdict
from streams.contract.task import Task, load_task
from streams.contract.topics import topic_name, topic_specs
from streams.fleet.following import publish, read_view
from streams.kafka.admin import ensure_topics
from streams.kafka.producer import Producer
from streams.kafka.reader import Received
from streams.kafka.settings import BrokerSettings
from tests.compose.dashboard.made_up import CANARY, STABLE, decision, device, letter, report
from tests.compose.messages import TASK
from tests.fakes.own_task import own_task


@pytest.fixture
def task(tmp_path: Path) -> Task:
    return load_task(own_task(tmp_path))


@pytest.fixture
def watch(embedded: BrokerSettings, task: Task) -> Iterator[Watch]:
    made = Watch(embedded, task)
    yield made
    made.stop()


def until(watch: Watch, condition: Callable[[Observed], object], what: str) -> None:
    deadline = time.monotonic() + 60
    while not watch.look(condition):
        assert time.monotonic() < deadline, (what, watch.look(lambda seen: seen.link))
        time.sleep(0.05)


def send(broker: BrokerSettings, task: Task, *messages: Received) -> None:
    with closing(Producer(broker)) as producer:
        for message in messages:
            topic = topic_name(task.name, message.topic.removeprefix(f"{TASK}."))
            producer.put(topic, message.key, message.value, message.headers)


def test_it_says_that_topics_are_missing_and_goes_on_when_they_are_there(
    embedded: BrokerSettings, task: Task, watch: Watch
) -> None:
    watch.start()
    until(watch, lambda seen: "does not have the topics" in seen.link.trouble, "they are missing")
    assert watch.look(lambda seen: f"{task.name}." in seen.link.why)
    ensure_topics(embedded, topic_specs(task.name))
    until(watch, lambda seen: not seen.link.trouble, "there is no trouble any more")
    send(embedded, task, device("d0"), report("d0", 5), letter(0))
    until(watch, lambda seen: seen.view.devices.keys() == {"d0"}, "the device is seen")
    until(watch, lambda seen: seen.beside.recent.of("d0"), "its window is seen")
    until(watch, lambda seen: seen.beside.letters.counts == {"bad-arrow": 1}, "the letter is seen")
    assert watch.look(lambda seen: seen.lag.partitions)


def test_messages_are_taken_in_while_a_canary_is_evaluated(
    embedded: BrokerSettings, task: Task, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on, evaluate = threading.Event(), threading.Event(), canary.evaluate

    def slowly(*given: Any, **named: Any) -> StageVerdict:
        begun.set()
        assert go_on.wait(30)
        return evaluate(*given, **named)

    monkeypatch.setattr(canary, "evaluate", slowly)
    ensure_topics(embedded, topic_specs(task.name))
    offer = {"stable": STABLE, "offered": CANARY, "share": 1.0, "stage": 1}
    send(embedded, task, device("d0"), decision(1, "stage", CANARY, 60, **offer))
    watch.start()
    assert begun.wait(60)
    send(embedded, task, device("d1"))
    until(watch, lambda seen: seen.view.devices.keys() == {"d0", "d1"}, "the device is seen")
    go_on.set()
    until(watch, lambda seen: seen.beside.canary.odds, "the result is there")


def test_after_a_snapshot_the_windows_before_it_are_shown_and_counted_once(
    embedded: BrokerSettings, task: Task, watch: Watch
) -> None:
    ensure_topics(embedded, topic_specs(task.name))
    send(embedded, task, device("d0"), *(report("d0", ago_s) for ago_s in (30, 20)))
    with closing(Producer(embedded)) as producer:
        publish(producer, read_view(embedded, task.name), 1)
    send(embedded, task, report("d0", 10))
    watch.start()
    until(watch, lambda seen: seen.view.windows == 3, "all windows are counted")
    assert watch.look(lambda seen: len(seen.beside.recent.of("d0"))) == 3
