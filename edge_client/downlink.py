"""From Kafka to the device: releases, the artifacts that they name, and the teacher's scores.

A release that is offered to this device and is not what it serves is fetched, verified and
installed on this thread; the device's loop takes the new engine between two segments. What fails
verification is refused with its reason, and the same release is not fetched again.
"""

import logging
import random
import threading
import time
from collections.abc import Callable

import numpy as np

from edge_client.samples import Samples
from streams.contract.bus import BrokerSettings, Reader
from streams.contract.documents import Release
from streams.contract.errors import ArtifactError, MalformedRecord, Retryable
from streams.contract.records import decode_batch, score_schema, times_us
from streams.contract.task import Task
from streams.contract.topics import ARTIFACTS, RELEASES, SCORES, topic_name

log = logging.getLogger(__name__)

FETCH_S = 60.0


class Downlink(threading.Thread):
    """Follows `releases` and this device's part of `scores`."""

    def __init__(
        self,
        task: Task,
        device: str,
        settings: BrokerSettings,
        *,
        install: Callable[[bytes, Release], None],
        serving: Callable[[], str | None],
        samples: Samples,
    ) -> None:
        super().__init__(name="downlink", daemon=True)
        self._task = task
        self._device = device
        self._settings = settings
        self._install = install
        self._serving = serving
        self._samples = samples
        self._ending = threading.Event()
        self._refused: str | None = None
        self.error: str | None = None

    def stop(self) -> None:
        self._ending.set()
        self.join(5.0)

    def run(self) -> None:
        backoff_s = 0.5
        while not self._ending.is_set():
            try:
                self._follow()
                backoff_s = 0.5
            except Retryable as exc:
                log.debug("downlink: %s", exc)
                self._ending.wait(backoff_s * random.uniform(0.5, 1.5))
                backoff_s = min(backoff_s * 2, 5.0)

    def _follow(self) -> None:
        name = self._task.name
        topics = [topic_name(name, RELEASES), topic_name(name, SCORES)]
        reader = Reader(self._settings, topics, key=self._device)
        release: Release | None = None
        try:
            for partition in reader.partitions(topics[1]) if self._samples.scores_read else []:
                reader.seek(topics[1], partition, self._samples.scores_read)
            while not self._ending.is_set():
                for message in reader.poll(0.25):
                    try:
                        if message.topic == topics[0]:
                            release = self._read_release(message.key, message.value) or release
                        else:
                            if message.key == self._device.encode():
                                self._read_scores(message.value)
                            self._samples.scores_read = message.offset + 1
                    except MalformedRecord as exc:
                        log.warning("%s offset %d: %s", message.topic, message.offset, exc)
                if release is not None:
                    self._consider(release)
        finally:
            reader.close()

    def _read_release(self, key: bytes | None, value: bytes | None) -> Release | None:
        return Release.decode(value) if key == self._task.name.encode() else None

    def _read_scores(self, value: bytes | None) -> None:
        rows = decode_batch(value or b"", score_schema())
        teacher = rows.column("teacher")
        known = [i for i, x in enumerate(teacher.to_pylist()) if len(x) == self._task.outputs]
        if known:
            taken = rows.take(known)
            outputs = np.array(taken.column("teacher").to_pylist(), np.float32)
            self._samples.teach(times_us(taken.column("time")), outputs)

    def _consider(self, release: Release) -> None:
        """Install the latest release unless it is served, refused, or not for this device."""
        if release.model == self._serving() or release.digest == self._refused:
            return
        if not release.offered_to(self._device):
            return
        try:
            data = self._fetch(release)
            self._install(data, release)
            self.error = None
        except OSError as exc:  # a full disk: tried again with the next look
            self.error = f"release {release.model} not installed: {exc}"
        except ArtifactError as exc:
            self._refused = release.digest
            self.error = f"release {release.model} refused: {exc}"
            log.error("%s; %s goes on serving", self.error, self._serving())

    def _fetch(self, release: Release) -> bytes:
        """The artifact's bytes from its chunks; Retryable when they do not come in time."""
        topic = topic_name(self._task.name, ARTIFACTS)
        reader = Reader(self._settings, [topic])
        chunks: dict[int, bytes] = {}
        deadline = time.monotonic() + FETCH_S
        try:
            reader.seek(topic, 0, release.offset)
            while len(chunks) < release.chunks:
                if time.monotonic() > deadline or self._ending.is_set():
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
