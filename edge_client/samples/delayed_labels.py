"""Labels that become known later: runs the task's `outcomes` generator on its own thread.

The generator receives the device's answers and yields an Outcome whenever a label becomes known. It
may keep state. A label goes to the segments that the device still has, and to the server
(labels.py). If the generator is too slow, the oldest answers are skipped and counted. A
generator that raises is restarted after a pause and loses its state, as in a restart of the agent.
"""

import contextlib
import logging
import queue
import random
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np

from edge_client.samples.labels import LabelQueue
from edge_client.samples.samples import OUTCOME
from streams.contract.documents import LATEST_US
from streams.contract.task import Answered, Outcome, Task
from streams.segments.segmentation import label_fits

log = logging.getLogger(__name__)

WAITING = 1000  # answers
FLUSH_S = 0.2  # labels that a kill may cost
RESTART_S = (0.5, 30.0)
OVERFLOW, UNFIT = "outcomes-overflow", "outcome-unfit"


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
        self._answers: queue.Queue[Answered] = queue.Queue(WAITING)
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
                self._skip(OVERFLOW, self._answers.get_nowait().last_us)

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
