"""Bytes of the announced decision that `artifacts` no longer has: they are sent again.

The topic keeps everything, unless its cluster limits it by size, or somebody deletes its messages
or makes it anew. Without the bytes a new device can install nothing.

1. put the missing bytes on `artifacts`
2. put the decision under the task's name again, with the new positions

After a crash in 1 the next look finds them missing again.
"""

import logging
from collections.abc import Sequence
from contextlib import closing

from federation.registry.publisher import Publisher, deliver
from federation.registry.registry import Registry
from streams.contract.decisions import Delivery, Release
from streams.contract.errors import BrokerUnavailable
from streams.contract.topics import ARTIFACTS, RELEASES, topic_name
from streams.kafka.reader import Reader
from streams.kafka.settings import BrokerSettings

POLLS = 50  # of 0.2 s, for the first chunk of a delivery

log = logging.getLogger(__name__)


def gone(settings: BrokerSettings, task: str, deliveries: Sequence[Delivery]) -> list[Delivery]:
    """Return the deliveries of which `artifacts` does not have the first chunk in its place, or not
    as many messages as there are chunks; raise BrokerUnavailable."""
    topic = topic_name(task, ARTIFACTS)
    with closing(Reader(settings, [topic])) as reader:
        ((begin, end),) = reader.bounds().values()
        return [
            each
            for each in deliveries
            if each.offset < begin
            or each.offset + each.chunks > end
            or _key_at(reader, topic, each.offset) != each.sha256.encode()
        ]


def _key_at(reader: Reader, topic: str, offset: int) -> bytes | None:
    reader.seek(topic, 0, offset)
    for _ in range(POLLS):
        for message in reader.poll(0.2, limit=1):
            return message.key if message.offset == offset else None
    raise BrokerUnavailable(f"{topic} returned no message from offset {offset} on")


def send_again(
    producer: Publisher, registry: Registry, announced: Release, missing: Sequence[Delivery]
) -> Release:
    """Send the `missing` deliveries of the announced release; return it with their new places."""
    topic = topic_name(registry.id, ARTIFACTS)
    known = [each for each in announced.deliveries if each not in missing]
    for each in missing:
        what = each.model if each.base is None else f"{each.model} from {each.base}"
        log.warning("%s no longer has the bytes of %s: they are sent again", topic, what)
    deliveries = deliver(producer, registry, announced.decision.standing, known)
    release = announced.model_copy(update={"deliveries": deliveries})
    producer.put(topic_name(registry.id, RELEASES), registry.id.encode(), release.encode())
    return release
