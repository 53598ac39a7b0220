"""Maintenance of the store, on its own thread: it never delays a commit, and nothing depends on it.

At every 256th commit of a partition its owner

1. writes positions/<partition>.jsonl.zst: the position up to the partition's present commits
2. with `keep_days`, moves old rows from `scores` and `labels` to `aged` (retention.py)
3. compacts the partition's files of the tables
4. deletes files that no version of the last day has, and log entries older than a day

A crash costs the work alone: a snapshot is written as a whole, and an interrupted compaction is no
commit. A snapshot depends only on the rows up to its commits; one that cannot be read, or is ahead
of the tables, is ignored, and all rows are read. Of two workers that clean one table at once one
collides, logs it, and retries at its next turn.

The process may be killed during maintenance. `stop` waits for it, because a library call that
returns during the interpreter's shutdown would crash.
"""

import logging
import queue
import threading
import time

from streams.contract.errors import TidewheelError
from streams.worker.metrics import Metrics
from streams.worker.store.delta_store import DeltaStore
from streams.worker.store.place import Place

log = logging.getLogger(__name__)


class Maintenance(threading.Thread):
    """Maintains a partition after every `every` commits, one partition at a time. keep_days: of
    event time, after which rows are deleted; None for never."""

    def __init__(
        self, place: Place, every: int, metrics: Metrics, keep_days: float | None = None
    ) -> None:
        super().__init__(name="upkeep", daemon=True)
        self._place, self._every, self._metrics = place, every, metrics
        self._keep_days = keep_days
        self._due: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._ending = threading.Event()

    def committed(self, partition: int, commit: int) -> None:
        """Schedule maintenance if it is due after this commit."""
        if commit % self._every == 0:
            self._due.put(partition)

    def stop(self, timeout_s: float) -> bool:
        """Stop after the current partition; return whether that was in time."""
        self._ending.set()
        self._due.put(None)
        self.join(timeout_s)
        return not self.is_alive()

    def run(self) -> None:
        while (partition := self._due.get()) is not None and not self._ending.is_set():
            began = time.monotonic()
            try:
                DeltaStore(self._place).keep_up(partition, self._keep_days)
            except TidewheelError as exc:
                log.warning("maintenance of partition %d postponed: %s", partition, exc)
                continue
            except Exception:  # a full disk, a defect: scoring continues
                log.exception("maintenance of partition %d failed", partition)
                continue
            took = time.monotonic() - began
            self._metrics.maintenance(took)
            log.info("maintenance of partition %d took %.1f s", partition, took)
