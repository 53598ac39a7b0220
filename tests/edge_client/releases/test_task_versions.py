"""A device whose task becomes another version, and goes back: each has its topics."""

from dataclasses import replace

import pytest

from federation.registry import publisher
from federation.registry.registry import Registry
from streams.contract.topics import topic_specs
from streams.kafka.admin import ensure_topics
from tests.edge_client.releases.test_downlink import Rig, graph, rig

__all__ = ["graph", "rig"]
pytestmark = pytest.mark.kafka


def test_each_version_of_a_task_follows_its_own_registry(rig: Rig) -> None:
    first, before = rig.serve(2), rig.registry
    rig.serves(first)
    old_task, new_task = rig.task, replace(rig.task, version=2)

    ensure_topics(rig.broker, topic_specs(new_task.id))
    new = Registry(rig.folder / "new", new_task.name, 2, [rig.key.public_key()])
    model = new.add(rig.version(1, task=new_task)).model
    new.serve(model, rig.key, "the first model of version 2")
    told = publisher.announce(rig.producer, new, None)
    assert told is not None
    rig.say(told)  # what is signed for version 2, on the topic of version 1
    rig.complains("release refused: task: the decision is about version 2")
    assert rig.slots.active == first

    rig.stop()
    rig.task = new_task
    rig.start()
    assert rig.slots.active is None  # what it has is of version 1
    rig.serves(model)
    assert rig.acceptance.seq == 1

    rig.stop()
    rig.task = old_task
    rig.start()  # the way back
    third = before.add(rig.version(3, task=old_task)).model
    before.serve(third, rig.key, "version 1 goes on")
    publisher.announce(rig.producer, before, rig.told)
    rig.serves(third)
    assert rig.acceptance.seq == 3
