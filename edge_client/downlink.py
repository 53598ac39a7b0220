"""From Kafka to the device: decisions, model versions, the teacher's scores, labels from elsewhere,
and invitations.

Decisions on `releases` are accepted or refused in order (streams.runtime.trust). The last accepted
one names the version that this device must serve. If the device lacks it, it is fetched (fetch.py),
verified and installed on this thread; the device's loop takes the new engine between two segments.
A version that the slots have refused is not fetched again: the stable version is served instead. A
version that is unavailable is tried again, at growing intervals.
"""

import logging
import random
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edge_client.fetch import ArtifactFetcher, Downloads
from edge_client.inference.slots import Slots
from edge_client.samples.samples import EXTERNAL, Samples
from streams.contract.decisions import Ref, Release
from streams.contract.documents import LATEST_US
from streams.contract.errors import ArtifactError, MalformedRecord, Retryable
from streams.contract.events.compact import decode_taught
from streams.contract.events.json_items import KnownLabel, decode_known_labels
from streams.contract.events.messages import TAUGHT
from streams.contract.task import Task
from streams.contract.topics import INVITATIONS, LABELS, RELEASES, SCORES, topic_name
from streams.kafka.settings import BrokerSettings
from streams.runtime.trust import Acceptance

if TYPE_CHECKING:  # Kafka's library, which the first answer does not wait for
    from streams.kafka.reader import Reader, Received

log = logging.getLogger(__name__)

MOST_ROWS = 100_000  # of a message of scores
LOOK_BACK_MS = 600_000  # at invitations: older ones have expired
WAIT_S = HOLD_S = 8.0  # for a message; stop() does not wait for it
END_S, WORK_END_S = 0.3, 5.0  # for the thread to end while it waits, and while it does not
RETRY_S, RETRY_MOST_S = 1.0, 300.0  # between two attempts to install a version


class Downlink(threading.Thread):
    """Follows `releases`, `invitations` and this device's partition of `scores` and `labels`."""

    def __init__(
        self,
        task: Task,
        device: str,
        settings: BrokerSettings,
        *,
        slots: Slots,
        acceptance: Acceptance,
        samples: Samples,
        downloads: Path,
        invited: Callable[..., None],
        trains: bool = True,
        waits: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(name="downlink", daemon=True)
        self._task = task
        self._device = device
        self._settings = settings
        self._slots = slots
        self._acceptance = acceptance
        self._samples = samples
        self._invited = invited
        self._clock = clock
        self._ending = threading.Event()
        self._fetching = ArtifactFetcher(
            task.id,
            settings,
            bases=lambda: [m for m in (slots.active, slots.previous) if m],
            kept=slots.kept,
            trusted=lambda: acceptance.trusted,
            downloads=Downloads(downloads),
            trains=trains,
            waits=waits,
        )
        self._waits = True  # for a broker or a message
        self._connected_at = 0  # the end of `invitations` then
        self._release: Release | None = None  # the last accepted one
        self._withdrawn_by = -1  # the decision whose withdrawals the slots have
        self._failures = 0
        self._retry_at = 0.0
        self._back_at = clock()
        self._cut = False  # said already
        self._not_accepted: str | None = None
        self._not_installed: str | None = None

    @property
    def error(self) -> str | None:
        """Why the device does not serve the decided version; None if it does."""
        return self._not_accepted or self._not_installed

    @property
    def received_bytes(self) -> int:
        """Received bytes of artifacts and deltas since the start."""
        return self._fetching.received

    def hangs(self, limit_s: float) -> bool:
        """Return whether the thread has not come back for `limit_s`, from a test of a version or
        from the library."""
        return self.is_alive() and self._clock() - self._back_at > limit_s

    def stop(self) -> None:
        self._ending.set()
        self.join(END_S if self._waits else WORK_END_S)

    def run(self) -> None:
        backoff_s = 0.5
        while not self._ending.is_set():
            self._back_at = self._clock()
            try:
                self._follow()
                backoff_s = 0.5
            except Retryable as exc:
                if not self._cut:
                    self._cut = True
                    log.warning("no decision, score or label comes in: %s; trying again", exc)
                self._ending.wait(backoff_s * random.uniform(0.5, 1.5))
                backoff_s = min(backoff_s * 2, 5.0)

    def _follow(self) -> None:
        from streams.kafka.reader import Reader

        name = self._task.id
        scores, labels = topic_name(name, SCORES), topic_name(name, LABELS)
        invitations = topic_name(name, INVITATIONS)
        topics = [topic_name(name, RELEASES), scores, labels, invitations]
        reader = Reader(self._settings, topics, key=self._device, slow_line=True, hold_s=HOLD_S)
        try:
            reader.seek_back(time.time_ns() // 1_000_000 - LOOK_BACK_MS, invitations)
            self._connected_at = reader.end(invitations, 0)
            read = {scores: self._samples.scores_read, labels: self._samples.labels_read}
            for topic, offset in read.items():
                for partition in reader.partitions(topic) if offset else []:
                    reader.seek(topic, partition, offset)
            self._cut = False
            while not self._ending.is_set():
                messages = reader.poll(self._wait_s)
                self._waits, self._back_at = False, self._clock()
                if self._ending.is_set():
                    return
                self._take_messages(messages)
                self._consider(reader)
                self._waits = True
        finally:
            self._waits = True
            reader.close()

    @property
    def _wait_s(self) -> float:
        """How long to wait for a message: until the next attempt to install a version, if there is
        one."""
        left_s = self._retry_at - self._clock()
        return min(left_s, WAIT_S) if left_s > 0 else WAIT_S

    def _take_messages(self, messages: "Sequence[Received]") -> None:
        name = self._task.id
        self._accept([m for m in messages if m.topic == topic_name(name, RELEASES)])
        for message in messages:
            if message.topic == topic_name(name, SCORES):
                self._read_scores_of(message)
            elif message.topic == topic_name(name, LABELS):
                self._read_labels_of(message)
            elif message.topic == topic_name(name, INVITATIONS):
                self._invited(message.value, live=message.offset >= self._connected_at)

    def _accept(self, messages: "Sequence[Received]") -> None:
        """Accept decisions. A refusal is reported only for the record under the task's name,
        because the others may precede an accepted decision."""
        for message in messages:
            try:
                release = Release.decode(message.value)
                self._acceptance.accept(release)
            except (ArtifactError, MalformedRecord) as exc:
                if message.key == self._task.id.encode():
                    self._not_accepted = f"release refused: {exc}"
                continue
            self._take(release)

    def _take(self, release: Release) -> None:
        self._not_accepted = None
        again = self._release is not None and self._release.digest == release.digest
        if again and not release.deliveries:
            return  # the same decision under its own key
        self._release = release
        self._failures, self._retry_at = 0, 0.0

    def _read_scores_of(self, message: "Received") -> None:
        try:
            if message.key == self._device.encode():
                self._learn(dict(message.headers).get(TAUGHT, b""))
        except MalformedRecord as exc:
            log.warning("%s offset %d: %s", message.topic, message.offset, exc)
        self._samples.scores_read = message.offset + 1

    def _read_labels_of(self, message: "Received") -> None:
        """Take the labels of this device's own events. What names an event by the name of another
        producer is for the store alone."""
        with suppress(MalformedRecord):  # the worker puts it into dead-letters
            if message.key in (None, b"", self._device.encode()):
                for device, known in decode_known_labels(self._task, message.key, message.value):
                    if device == self._device and known.event_id is None:
                        self._take_label(known)
        self._samples.labels_read = message.offset + 1

    def _take_label(self, known: KnownLabel) -> None:
        if known.epoch in (None, self._samples.epoch):
            span = (known.at_us, known.at_us) if known.timed else (0, LATEST_US)
            self._samples.label(*span, np.asarray(known.label), EXTERNAL, known.seq)

    def _learn(self, taught: bytes) -> None:
        for epoch, first, outputs in decode_taught(self._task.outputs, taught, MOST_ROWS):
            if epoch == self._samples.epoch:
                self._samples.teach(np.arange(first, first + len(outputs)), outputs)

    def _consider(self, reader: "Reader") -> None:
        """Serve the version of the last decision, if it is available now; `reader` goes on reading
        decisions while it is fetched."""
        release = self._release
        if release is None or self._clock() < self._retry_at:
            return
        slots, desired = self._slots, release.decision.standing
        stable = desired.stable
        if self._withdrawn_by != release.decision.seq:
            slots.withdraw(desired.withdrawn, stable.model if stable else None)
            self._withdrawn_by = release.decision.seq
        wanted, refused = self._chosen(release)
        if wanted is None or wanted.model == slots.active:
            self._not_installed = refused
            return
        if not release.deliveries and wanted.model != slots.previous:
            return  # the next message has the deliveries
        try:
            self._serve(wanted, release, partial(self._outdated, wanted, reader))
            self._not_installed = refused
        except OSError as exc:  # a full disk
            self._again_later(release, f"release {wanted.model} not installed: {exc}")
        except Retryable as exc:
            self._again_later(release, f"release {wanted.model} not fetched: {exc}")
        except ArtifactError as exc:
            self._again_later(release, f"release {wanted.model} refused: {exc}")
            log.error("%s; %s keeps serving", self._not_installed, slots.active)

    def _serve(self, wanted: Ref, release: Release, stop: Callable[[], bool]) -> None:
        slots = self._slots
        if wanted.model == slots.previous:
            slots.reinstall(wanted.model)
        else:
            url = release.decision.standing.url
            data = self._fetching.fetch(wanted, release.deliveries, url, stop)
            slots.install(data, wanted.digest)
        log.info("%s: serving %s, was %s", self._device, slots.active, slots.previous)

    def _chosen(self, release: Release) -> tuple[Ref | None, str | None]:
        """Return the version that a decision wants from this device, and why that is not the one
        that it names."""
        desired, refused = release.decision.standing, self._slots.refused
        wanted, stable = desired.target(self._task.id, self._device), desired.stable
        if wanted is None or not (why := refused.get(wanted.model)):
            return wanted, None
        instead = stable if stable and stable.model not in refused else None
        return instead, f"release {wanted.model} refused: {why}"

    def _outdated(self, wanted: Ref, reader: "Reader") -> bool:
        """Read what has come meanwhile; return whether the agent ends, or the last decision wants
        another version."""
        self._back_at = self._clock()
        self._take_messages(reader.poll(0.0))
        last = self._release
        return self._ending.is_set() or last is None or self._chosen(last)[0] != wanted

    def _again_later(self, release: Release, problem: str) -> None:
        if self._release is not release or self._ending.is_set():
            return  # a decision that came meanwhile is considered at once; nothing follows the end
        self._not_installed = problem
        wait_s = min(RETRY_S * 2**self._failures, RETRY_MOST_S)
        self._failures += 1
        self._retry_at = self._clock() + wait_s * random.uniform(0.75, 1.25)
