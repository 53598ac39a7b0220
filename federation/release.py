"""Offering an artifact: its bytes on `artifacts`, then its name on `releases`.

A device's model has the task's name as its key, the workers' teacher `delivery.teacher_key`.

`artifacts` has one partition; a message holds up to CHUNK bytes, its key is the artifact's digest,
its headers are digest, index and chunks. Chunks of different artifacts may interleave: a receiver
starts at the release's offset and takes those with its digest, by index.

The release is sent when the broker has acknowledged every chunk, so whoever reads it finds them.
A crash between leaves chunks that nothing names; announcing again is harmless.
"""

import time
from collections.abc import Iterable, Iterator
from typing import Protocol

from federation.registry import Registry
from streams.contract.artifact import Artifact
from streams.contract.bus import Received
from streams.contract.delivery import teacher_key
from streams.contract.documents import Release
from streams.contract.errors import MalformedRecord
from streams.contract.records import Headers
from streams.contract.topics import ARTIFACTS, RELEASES, topic_name

CHUNK = 512 * 1024


class Publisher(Protocol):
    """What announcing needs of a producer."""

    def put(
        self,
        topic: str,
        key: bytes,
        value: bytes,
        headers: Headers | None = None,
        timeout_s: float = 10.0,
    ) -> int:
        """Send one message, wait until it is safe, and return its offset."""
        ...


def announce(
    producer: Publisher, registry: Registry, model: str, reason: str, share: float = 1.0
) -> Release:
    """Offer a kept model version; BrokerUnavailable when it could not be done."""
    artifact, data = registry.load(model), registry.read(model)
    return _offer(producer, artifact, data, artifact.manifest.task.encode(), reason, share)


def announce_teacher(producer: Publisher, registry: Registry, reason: str) -> Release | None:
    """Offer the registry's teacher to the workers; None where it has none."""
    artifact = registry.teacher()
    if artifact is None:
        return None
    data = registry.teacher_path.read_bytes()
    return _offer(producer, artifact, data, teacher_key(artifact.manifest.task), reason)


def _offer(
    producer: Publisher,
    artifact: Artifact,
    data: bytes,
    key: bytes,
    reason: str,
    share: float = 1.0,
) -> Release:
    manifest = artifact.manifest
    topic = topic_name(manifest.task, ARTIFACTS)
    offsets = [
        producer.put(topic, artifact.digest.encode(), part, headers)
        for part, headers in chunks(data, artifact.digest)
    ]
    release = Release(
        task=manifest.task,
        task_version=manifest.task_version,
        number=manifest.number,
        model=artifact.model,
        digest=artifact.digest,
        size=len(data),
        chunks=len(offsets),
        offset=offsets[0],
        share=share,
        base=manifest.base,
        reason=reason,
        announced_us=time.time_ns() // 1000,
    )
    producer.put(topic_name(release.task, RELEASES), key, release.encode())
    return release


def chunks(data: bytes, digest: str, size: int = CHUNK) -> Iterator[tuple[bytes, Headers]]:
    """The messages that carry an artifact's bytes: value and headers."""
    count = max(1, -(-len(data) // size))
    for index in range(count):
        yield (
            data[index * size : (index + 1) * size],
            [
                ("digest", digest.encode()),
                ("index", str(index).encode()),
                ("chunks", str(count).encode()),
            ],
        )


def current(messages: Iterable[Received], key: bytes) -> Release | None:
    """The last release under `key` among the messages of `releases`; what cannot be read is no
    release."""
    found = None
    for message in messages:
        if message.key != key or message.value is None:
            continue
        try:
            found = Release.decode(message.value)
        except MalformedRecord:
            continue
    return found
