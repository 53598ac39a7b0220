"""Whatever is on `releases`, `artifacts` and `scores`, a live device goes on: it serves what it
has, and takes the next sound version."""

from collections.abc import Callable

import pytest

from streams.contract.decisions import sign
from streams.contract.topics import LABELS, RELEASES, SCORES, topic_name
from streams.kafka.reader import Reader
from tests.edge_client.test_downlink import WHO, Rig, rig
from tests.federation.controller.test_bad_messages import deliver, send
from tests.federation.evaluation.test_recent_windows import scores
from tests.rig.made_up.mangled import mangled
from tests.rig.processes.polling import until

__all__ = ["rig"]

COUNT = 400


def on_releases(rig: Rig) -> None:
    """The last record is one that no other can be taken for."""
    told, topic = rig.told, topic_name(rig.task.id, RELEASES)
    assert told is not None
    values = mangled(told.encode(), COUNT, seed=len(RELEASES))
    send(rig.broker, topic, rig.task.id.encode(), values)
    other = told.decision.replace(task_version=9)
    rig.say(sign(other, rig.key))
    rig.complains("the decision is about version 9")


def on_artifacts(rig: Rig) -> None:
    """They are chunks of a version that is decided."""
    data = rig.version(2)
    made = rig.registry.add(data)
    said = rig.registry.serve(made.model, rig.key, "a test")
    delivery = deliver(rig.broker, rig.task.id, made.model, data, COUNT)
    rig.say(said.replace(deliveries=[delivery]))
    rig.complains(f"release {made.model} refused: ")


def on_scores(rig: Rig) -> None:
    topic = topic_name(rig.task.id, SCORES)
    _, value, _ = scores(rig.task, WHO, range(5))
    send(rig.broker, topic, WHO.encode(), mangled(value or b"", COUNT, seed=len(SCORES)))
    reader = Reader(rig.broker, [topic], key=WHO)
    try:
        (partition,) = reader.partitions(topic)
        end = reader.end(topic, partition)
    finally:
        reader.close()
    assert end >= COUNT
    until(lambda: rig.downlink._samples.scores_read == end, "they are all read", 30)


def on_labels(rig: Rig) -> None:
    topic = topic_name(rig.task.id, LABELS)
    send(rig.broker, topic, WHO.encode(), mangled(b'[{"time_us": 5, "label": 0}]', COUNT, seed=1))
    until(lambda: rig.downlink._samples.labels_read == COUNT, "they are all read", 30)


@pytest.mark.kafka
@pytest.mark.parametrize("spoil", [on_releases, on_artifacts, on_scores, on_labels])
def test_a_live_device_passes_over_what_it_cannot_read(
    rig: Rig, spoil: Callable[[Rig], None]
) -> None:
    """`spoil` returns when the device has read what it puts on the topic."""
    first = rig.slots.active
    spoil(rig)
    assert rig.slots.active == first
    rig.serves(rig.serve(3))
    assert rig.downlink.is_alive()
