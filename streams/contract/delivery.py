"""Fetching an artifact that a release names, from its chunks on `artifacts`."""

import threading
import time

from streams.contract.bus import BrokerSettings, Reader
from streams.contract.documents import Release
from streams.contract.errors import ArtifactError, Retryable
from streams.contract.topics import ARTIFACTS, topic_name

FETCH_S = 60.0


def teacher_key(task: str) -> bytes:
    """The key on `releases` of the teacher that the workers are to use; the device's model has the
    task's name as its key."""
    return f"{task}/teacher".encode()


def fetch(
    settings: BrokerSettings, release: Release, ending: threading.Event, timeout_s: float = FETCH_S
) -> bytes:
    """The artifact's bytes, not verified yet; Retryable when they do not come in time or `ending`
    is set, ArtifactError when they are not as long as announced."""
    topic = topic_name(release.task, ARTIFACTS)
    reader = Reader(settings, [topic])
    chunks: dict[int, bytes] = {}
    deadline = time.monotonic() + timeout_s
    try:
        reader.seek(topic, 0, release.offset)
        while len(chunks) < release.chunks:
            if time.monotonic() > deadline or ending.is_set():
                raise Retryable(f"{release.model}: {len(chunks)} of {release.chunks} chunks")
            for message in reader.poll(0.25):
                if message.key == release.digest.encode() and message.value is not None:
                    index = dict(message.headers).get("index", b"")
                    if index.isdigit() and int(index) < release.chunks:
                        chunks[int(index)] = message.value
    finally:
        reader.close()
    data = b"".join(chunks[i] for i in range(release.chunks))
    if len(data) != release.size:
        raise ArtifactError("truncated", f"{len(data)} bytes, {release.size} were announced")
    return data
