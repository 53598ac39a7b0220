"""True labels that become known after their events: to the samples, and to the store on the server.

    1  a label waits in memory: `add`
    2  those that wait are one frame of the queue `labels`, a spool beside that of the events:
       `flush`, every FLUSH_S, or at once for a person
    3  the uplink sends the frame and settles it when the broker has it

A crash in 1 loses the labels that wait; none of them has been confirmed. After 2 they are sent, and
after 3 perhaps once more: labels have numbers, and the worker stores each once. A full queue drops
its oldest labels and counts them. Labels of a person on this machine come in by LabelIntake.

DelayedLabels runs the task's `outcomes` generator on its own thread. The generator receives the
device's answers and yields an Outcome whenever a label becomes known. It may keep state. A label
goes to the segments that the device still has, and to the server. If the generator is too slow, the
oldest answers are skipped and counted. A generator that raises is restarted after a pause and loses
its state, as in a restart of the agent.
"""

import contextlib
import json
import logging
import queue
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edge_client.samples.samples import OUTCOME, SOURCES, USER, Samples
from edge_client.spool.frames import SpoolLimits
from edge_client.spool.queue import Spool
from streams.contract.accounting import DeviceAccount
from streams.contract.documents import LATEST_US
from streams.contract.errors import UsageError
from streams.contract.events.messages import encode_label_lines
from streams.contract.task import Answered, Outcome, Task
from streams.contract.work import Label
from streams.runtime.failpoints import Failpoint, unarmed
from streams.segments.segmentation import label_fits

if TYPE_CHECKING:
    from edge_client.uplink.uplink import Uplink


def parse_line(task: Task, number: int, line: str) -> Label:
    """Parse {"from_us": first, "to_us": last, "label": class name, index or values}.

    `to_us` is optional. Raises UsageError with the line number.
    """
    try:
        found = json.loads(line)
        first, label = found["from_us"], found["label"]
        last = found.get("to_us", first)
        for name, value in (("from_us", first), ("to_us", last)):
            if type(value) is not int:
                raise UsageError(f"{name} is {value!r}, not a whole number of microseconds")
        return parse_label(task, first, last, label)
    except UsageError as exc:
        raise UsageError(f"line {number}: {exc}") from exc
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
        raise UsageError(
            f'line {number}: write it as {{"from_us": 1, "to_us": 2, "label": "..."}}'
        ) from exc


def parse_label(task: Task, first_us: int, last_us: int, value: object) -> Label:
    """Return a label from a class name or index, or target values (a list or "1.5,2.0")."""
    if first_us < 0:
        raise UsageError(f"{first_us} us is before 1970")
    if last_us < first_us:
        raise UsageError(f"a label from {first_us} to {last_us} us covers no time")
    if last_us > LATEST_US:
        raise UsageError(f"{last_us} us is after the year 3100")
    values = _values(task, value)
    if values is None or not label_fits(task, values):
        wanted = ", ".join(task.classes) or f"a value for each of {', '.join(task.targets)}"
        raise UsageError(f"{value!r} is not a label of this task: {wanted}")
    return Label(first_us=first_us, last_us=last_us, label=values)


def _values(task: Task, value: object) -> list[float] | None:
    if isinstance(value, str) and value in task.classes:
        return [float(task.classes.index(value))]
    parts: list[object] = [value]
    if isinstance(value, str):
        parts = [*value.split(",")]
    elif isinstance(value, list) and not task.classes:
        parts = value
    if any(isinstance(part, bool) for part in parts):
        return None
    try:
        return [float(part) for part in parts]  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None


# --- to the samples and the server ----------------------------------------------------------------

ROWS = 512  # labels of a frame
WAITING = 20_000  # labels in memory: further ones are taken by the samples alone, and counted
LIMITS = SpoolLimits.under(16 << 20)
OVERFLOW = "labels-overflow"

log = logging.getLogger(__name__)


class LabelQueue:
    """Takes labels of a person and of the task's `outcomes`; thread-safe."""

    def __init__(
        self,
        folder: Path,
        samples: Samples,
        skip: Callable[[str, int], None],
        *,
        wall: Callable[[], float] = time.time,
        failpoint: Failpoint = unarmed,
    ) -> None:
        self._samples, self._skip, self._wall = samples, skip, wall
        self._reached = failpoint
        self._lock = threading.Lock()
        self._waiting: list[dict[str, object]] = []
        self.queue = Spool(folder, LIMITS)
        self.error: str | None = None

    def add(
        self, first_us: int, last_us: int, label: np.ndarray, source: int, seq: int | None = None
    ) -> int:
        """Label the events between two event times, both included, or the one with `seq` alone;
        return how many segments the device has of them."""
        row: dict[str, object] = {
            "from": first_us,
            "to": last_us,
            "label": label.reshape(-1).tolist(),
            "told": round(self._wall() * 1e6),
            "source": SOURCES[source],
        }
        if seq is not None:
            row |= {"event_epoch": self._samples.epoch, "event_seq": seq}
        with self._lock:
            if len(self._waiting) < WAITING:
                self._waiting.append(row)
            else:
                self._skip(OVERFLOW, last_us)
        return self._samples.label(first_us, last_us, label, source, seq)

    def flush(self) -> None:
        """Write those that wait to the queue; OSError for a full disk, and they wait on."""
        with self._lock:
            while self._waiting:
                rows = self._waiting[:ROWS]
                body = encode_label_lines(rows)
                self._reached("label-step-1")
                self.queue.append(len(rows), body, mark=0)
                del self._waiting[: len(rows)]
                self._reached("label-step-2")

    def try_to_flush(self) -> None:
        """The same, for a thread that comes again."""
        try:
            self.flush()
            self.error = None
        except OSError as exc:
            if self.error is None:
                log.warning("labels cannot be written (%s): they wait in memory", exc)
            self.error = f"labels: {exc}"

    def account(self) -> dict[str, int]:
        """Return how many labels there were, and what became of them; those in memory are pending.
        Empty if there were none."""
        return account_of(self.queue.account(), len(self._waiting))


def account_of(found: DeviceAccount, waiting: int = 0) -> dict[str, int]:
    """The same of the account of a queue, and of labels that are not in it yet."""
    if not found.produced + waiting:
        return {}
    return {
        "produced": found.produced + waiting,
        "delivered": found.delivered,
        "dropped": sum(found.dropped.values()),
        "pending": found.pending + waiting,
    }


class LabelIntake:
    """Takes labels of a person on this machine; the uplink runs from the first label on."""

    def __init__(self, task: Task, samples: Samples, queue: LabelQueue, uplink: "Uplink") -> None:
        self._task, self._samples, self._queue, self._uplink = task, samples, queue, uplink
        self._started = False
        self._starting = threading.Lock()  # a person and the agent's start may come together

    @property
    def hangs(self) -> bool:
        """Whether the uplink's thread does not come back."""
        return self._uplink.hangs

    def start(self, *, expected: bool) -> None:
        """Start the uplink if labels are `expected`, or wait from an earlier run."""
        with self._starting:
            if not self._started and (expected or self._queue.queue.account().pending):
                self._started = True
                self._uplink.start()

    def take(self, labels: Sequence[Label]) -> tuple[int, str | None]:
        """Label segments up to the first label that the task does not have; return how many, and
        what is wrong. They are on the disk, unless what is wrong says that they are not."""
        labelled, new, error = 0, False, None
        for given in labels:
            if not label_fits(self._task, given.label):
                error = f"{given.label} is no label of this task"
                break
            label = np.asarray(given.label, np.float32)
            labelled += self._queue.add(given.first_us, given.last_us, label, USER)
            new = True
        if new:
            try:
                self._keep()
            except OSError as exc:
                error = f"labels are in memory and not on the disk yet: {exc}"
        return labelled, error

    def _keep(self) -> None:
        """Write the new labels to the disk: what goes to the server, then the samples."""
        try:
            self._queue.flush()
            self._samples.save()
        except OSError:
            self._samples.urgent = True  # the keeper writes it later
            raise
        self.start(expected=True)

    def stop(self, drain_s: float) -> None:
        """Send what waits for at most `drain_s`."""
        self._queue.try_to_flush()
        if self._started:
            self._uplink.stop(drain_s)


ANSWERS = 1000  # answers
FLUSH_S = 0.2  # labels that a kill may cost
RESTART_S = (0.5, 30.0)
OUTCOMES_OVERFLOW, UNFIT = "outcomes-overflow", "outcome-unfit"


class DelayedLabels(threading.Thread):
    """Runs `task.outcomes` until it is stopped."""

    def __init__(
        self, task: Task, device: str, labels: LabelQueue, skip: Callable[[str, int], None]
    ) -> None:
        super().__init__(name="outcomes", daemon=True)
        self._task = task
        self._device = device
        self._labels = labels
        self._skip = skip
        self._answers: queue.Queue[Answered] = queue.Queue(ANSWERS)
        self._flushed = time.monotonic()
        self._ending = threading.Event()
        self._ended = False  # the generator has returned
        self.error: str | None = None

    def put(self, answered: Answered) -> None:
        """Pass an answer to the generator; never waits."""
        while not self._ended:
            with contextlib.suppress(queue.Full):
                self._answers.put_nowait(answered)
                break
            with contextlib.suppress(queue.Empty):
                self._skip(OUTCOMES_OVERFLOW, self._answers.get_nowait().last_us)

    def stop(self) -> None:
        self._ending.set()
        self.join(2.0)  # a generator that blocks ends with the process
        self._labels.try_to_flush()

    def run(self) -> None:
        assert self._task.outcomes is not None
        pause_s = RESTART_S[0]
        while not self._ending.is_set():
            try:
                for outcome in self._task.outcomes(self._device, self._given()):
                    self._note(Outcome(*outcome))
                    self.error, pause_s = None, RESTART_S[0]
                self._ended = True
                return
            except Exception as exc:  # a user's generator may raise anything
                self.error = f"outcomes: {type(exc).__name__}: {exc}"[:300]
                log.exception("the task's `outcomes` failed, restarting in %.1f s", pause_s)
                self._ending.wait(pause_s * random.uniform(0.5, 1.5))
                pause_s = min(2 * pause_s, RESTART_S[1])

    def _given(self) -> Iterator[Answered]:
        while not self._ending.is_set():
            self._flush_if_due()
            with contextlib.suppress(queue.Empty):
                yield self._answers.get(timeout=FLUSH_S)

    def _note(self, outcome: Outcome) -> None:
        first_us, last_us, label, seq = outcome
        if not label_fits(self._task, label) or not 0 <= first_us <= last_us <= LATEST_US:
            self._skip(UNFIT, last_us)
            return
        values = np.asarray(label, np.float32).reshape(-1)
        self._labels.add(first_us, last_us, values, OUTCOME, seq)
        self._flush_if_due()

    def _flush_if_due(self) -> None:
        """While the generator itself waits for something the agent's keeper does it."""
        if time.monotonic() - self._flushed >= FLUSH_S:
            self._labels.try_to_flush()
            self._flushed = time.monotonic()
