"""Whatever is on `releases`, `artifacts` and `scores`, a live device goes on: it serves what it
has, and takes the next sound version."""

import pytest

from streams.contract.topics import ARTIFACTS, RELEASES, SCORES, topic_name
from tests.edge_client.releases.test_downlink import Rig, graph, rig
from tests.fakes.mangled import mangled
from tests.federation.controller.test_bad_messages import send

__all__ = ["graph", "rig"]

COUNT = 400


@pytest.mark.kafka
@pytest.mark.parametrize("topic", [RELEASES, ARTIFACTS, SCORES])
def test_a_live_device_passes_over_what_it_cannot_read(rig: Rig, topic: str) -> None:
    first = rig.slots.active
    told = rig.told
    assert told is not None
    key, value = {
        RELEASES: (rig.task.name.encode(), told.encode()),
        ARTIFACTS: (b"f" * 64, rig.version(1)[:3000]),
        SCORES: (b"d0", b"ARROW1" + bytes(200)),
    }[topic]
    send(rig.broker, topic_name(rig.task.name, topic), key, mangled(value, COUNT, seed=len(topic)))
    assert rig.slots.active == first
    rig.serves(rig.serve(2))
    assert rig.downlink.is_alive()
