"""From Kafka to the device: releases, the artifacts that they name, and the teacher's scores.

A release that is offered to this device and is not what it serves is fetched, verified and
installed on this thread; the device's loop takes the new engine between two segments. What the
slots have refused or gone back from is not fetched again. Bytes that do not verify say nothing of
the version whose name they bear: they are not fetched again by this process.
"""

import logging
import random
import threading
from collections.abc import Callable

import numpy as np

from edge_client.samples import Samples
from streams.contract.bus import BrokerSettings, Reader
from streams.contract.delivery import fetch
from streams.contract.documents import Release
from streams.contract.errors import ArtifactError, MalformedRecord, Retryable
from streams.contract.records import decode_batch, score_schema, times_us
from streams.contract.task import Task
from streams.contract.topics import RELEASES, SCORES, topic_name

log = logging.getLogger(__name__)

LOOKING_S = 0.3  # that the end waits while no broker is found


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
        refused: Callable[[], dict[str, str]],
        samples: Samples,
    ) -> None:
        super().__init__(name="downlink", daemon=True)
        self._task = task
        self._device = device
        self._settings = settings
        self._install = install
        self._serving = serving
        self._refused = refused
        self._samples = samples
        self._ending = threading.Event()
        self._unsound: str | None = None
        self._connected = False
        self.error: str | None = None

    def stop(self) -> None:
        self._ending.set()
        self.join(5.0 if self._connected else LOOKING_S)

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
        self._connected = True
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
            self._connected = False
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
        if release.model == self._serving():
            self.error = None
            return
        if release.digest == self._unsound or not release.offered_to(self._device):
            return
        reason = self._refused().get(release.model)
        if reason is not None:
            self.error = f"release {release.model} refused: {reason}"
            return
        try:
            data = fetch(self._settings, release, self._ending)
            self._install(data, release)
            self.error = None
        except OSError as exc:  # a full disk: tried again with the next look
            self.error = f"release {release.model} not installed: {exc}"
        except ArtifactError as exc:
            self._unsound = release.digest
            self.error = f"release {release.model} refused: {exc}"
            log.error("%s; %s goes on serving", self.error, self._serving())
