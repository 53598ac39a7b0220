"""When the store is maintained: the thread beside the commits. delta_store.py has the steps."""

import logging
import queue
import threading
import time

from streams.contract.errors import TidewheelError
from streams.worker.metrics import Metrics
from streams.worker.store.delta_store import DeltaStore
from streams.worker.store.tables import Place

SHARE = 0.5  # of the time, at most: commits of a long history add files faster than they compact

log = logging.getLogger(__name__)


class Maintenance(threading.Thread):
    """Maintains a partition when its commits have added `every` files, one partition at a time.
    keep_days: of event time, after which rows are deleted; None for never."""

    def __init__(
        self, place: Place, every: int, metrics: Metrics, keep_days: float | None = None
    ) -> None:
        super().__init__(name="upkeep", daemon=True)
        self._place, self._every, self._metrics = place, every, metrics
        self._keep_days = keep_days
        self._added: dict[int, int] = {}  # files of each partition since it was due
        self._waiting: set[int] = set()
        self._due: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._ending = threading.Event()

    def committed(self, partition: int, commit: int, files: int) -> None:
        """Schedule maintenance if it is due after this commit, which added files. Where a worker
        begins, each commit before is taken to have added one."""
        added = self._added.get(partition, (commit - 1) % self._every) + files
        if added >= self._every and partition not in self._waiting:
            self._waiting.add(partition)
            self._due.put(partition)
            added = 0
        self._added[partition] = added

    def stop(self, timeout_s: float) -> bool:
        """Stop after the current partition; return whether that was in time."""
        self._ending.set()
        self._due.put(None)
        self.join(timeout_s)
        return not self.is_alive()

    def run(self) -> None:
        while (partition := self._due.get()) is not None and not self._ending.is_set():
            self._waiting.discard(partition)  # what is committed from now on may be due again
            began, done = time.monotonic(), False
            try:
                DeltaStore(self._place).keep_up(partition, self._keep_days)
                done = True
            except TidewheelError as exc:
                log.warning("maintenance of partition %d postponed: %s", partition, exc)
            except Exception:  # a full disk, a defect: scoring continues
                log.exception("maintenance of partition %d failed", partition)
            took = time.monotonic() - began
            if done:
                self._metrics.maintenance(took)
                log.info("maintenance of partition %d took %.1f s", partition, took)
            self._ending.wait(took / SHARE - took)
