"""Labels that become known later: the task's own `outcomes`, on a thread of its own.

The task's generator is given the device's answers as they come and yields an Outcome whenever
something has turned out; it may keep what it likes meanwhile. A label is noted for the segments
that are still remembered. Answers that the generator is too slow for are passed over, the oldest
first, and counted. A generator that raises begins anew after a pause; what it held is lost, as
after a restart of the agent.
"""

import contextlib
import logging
import queue
import random
import threading
from collections.abc import Callable, Iterator

import numpy as np

from edge_client.samples.samples import OUTCOME, Samples
from streams.contract.task import Answered, Task
from streams.segments.segmentation import label_fits

log = logging.getLogger(__name__)

WAITING = 1000  # answers
RESTART_S = (0.5, 30.0)
OVERFLOW, UNFIT = "outcomes-overflow", "outcome-unfit"


class DelayedLabels(threading.Thread):
    """Runs `task.outcomes` until it is stopped."""

    def __init__(
        self, task: Task, device: str, samples: Samples, skip: Callable[[str, int], None]
    ) -> None:
        super().__init__(name="outcomes", daemon=True)
        self._task = task
        self._device = device
        self._samples = samples
        self._skip = skip
        self._answers: queue.Queue[Answered] = queue.Queue(WAITING)
        self._ending = threading.Event()
        self._ended = False  # the generator wants no more
        self.error: str | None = None

    def put(self, answered: Answered) -> None:
        """Hand an answer over; never waits."""
        while not self._ended:
            with contextlib.suppress(queue.Full):
                self._answers.put_nowait(answered)
                break
            with contextlib.suppress(queue.Empty):
                self._skip(OVERFLOW, self._answers.get_nowait().last_us)

    def stop(self) -> None:
        self._ending.set()
        self.join(2.0)  # one that waits for something else ends with the process

    def run(self) -> None:
        assert self._task.outcomes is not None
        pause_s = RESTART_S[0]
        while not self._ending.is_set():
            try:
                for outcome in self._task.outcomes(self._device, self._given()):
                    self._note(outcome.first_us, outcome.last_us, outcome.label)
                    self.error, pause_s = None, RESTART_S[0]
                self._ended = True
                return
            except Exception as exc:  # a user's generator: anything
                self.error = f"outcomes: {type(exc).__name__}: {exc}"[:300]
                log.exception("the task's outcomes have failed, again in %.1f s", pause_s)
                self._ending.wait(pause_s * random.uniform(0.5, 1.5))
                pause_s = min(2 * pause_s, RESTART_S[1])

    def _given(self) -> Iterator[Answered]:
        while not self._ending.is_set():
            try:
                yield self._answers.get(timeout=0.2)
            except queue.Empty:
                continue

    def _note(self, first_us: int, last_us: int, label: object) -> None:
        if not label_fits(self._task, label):
            self._skip(UNFIT, last_us)
            return
        values = np.asarray(label, np.float32).reshape(-1)
        self._samples.label(first_us, last_us, values, OUTCOME)
