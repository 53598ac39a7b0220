"""The device's loop: takes a segment, infers, and puts an event into memory. No I/O.

A failed source of readings is restarted after a pause, which grows until readings come again; the
rest of the device continues.
"""

import logging
import math
import random
import threading
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field

from edge_client.inference.challenger import Challenger
from edge_client.inference.engine import Engine
from edge_client.inference.slots import Slots
from edge_client.sources.replay import Cut, Source
from edge_client.spool.writer import Event
from streams.contract.errors import Retryable, UsageError
from streams.contract.task import Task

log = logging.getLogger("tidewheel.edge")

ROOM_S = 0.005  # between two looks whether there is room
RESTART_S = (0.5, 30.0)  # the first and the longest pause before a source is restarted
HANGS_S = 10.0  # at least; an answer that takes longer is considered hung


@dataclass
class Rate:
    """Events per second since the last call of `per_second`."""

    events: int = 0
    at: float = 0.0

    def per_second(self) -> float:
        now, events = time.monotonic(), self.events
        rate = events / (now - self.at) if self.at else 0.0
        self.at, self.events = now, 0
        return rate


@dataclass
class InferenceLoop:
    """Answers every segment of the source, on the thread that calls `run`. `full` says whether a
    recording has to wait for events that are not written yet; label_share: the share of true labels
    that the device gets; None: `Training.label_share`."""

    task: Task
    device: str
    source: Source
    slots: Slots
    other: Challenger
    put: Callable[[Event], None]
    skip: Callable[[str, int], None]
    stop: threading.Event
    full: Callable[[], bool] = lambda: False
    label_share: float | None = None
    rate: Rate = field(default_factory=Rate)
    error: str | None = None
    _began: float | None = None  # start of the current inference

    def run(self) -> None:
        """Answer until the source ends or the device is stopped."""
        pause_s = RESTART_S[0]
        while not self.stop.is_set():
            try:
                for cut in self.source:
                    while self.full() and not self.stop.is_set():
                        self.stop.wait(ROOM_S)
                    self.answer(cut)
                    if self.error is not None:
                        log.info("%s: readings come again", self.device)
                    self.error, pause_s = None, RESTART_S[0]
                return
            except UsageError:
                raise  # a restart would not help
            except Exception as exc:  # a user's iterator or a driver may raise anything
                self._report(exc)
                self.stop.wait(pause_s * random.uniform(0.5, 1.5))
                pause_s = min(2 * pause_s, RESTART_S[1])

    def _report(self, exc: Exception) -> None:
        """Log why the source failed, once per reason; with a traceback unless it is Retryable."""
        before = self.error
        if isinstance(exc, Retryable):
            self.error = f"readings: {exc}"[:300]
        else:
            self.error = f"readings: {type(exc).__name__}: {exc}"[:300]
        if self.error != before:
            known = isinstance(exc, Retryable)
            log.warning("%s: %s; trying again", self.device, self.error, exc_info=not known)

    def answer(self, cut: Cut) -> None:
        """Infer one segment and emit its event."""
        base = self.slots.engine  # one version for the whole answer
        assert base is not None
        engine = self.other.engine_for(base)
        self._began = began = time.perf_counter()
        try:
            outputs = engine.run(cut.segment)
        except Exception as exc:
            self._failed(base, engine, exc)
            self.skip("answer-failed", cut.last_us)
            return
        finally:
            self._began = None
        if not math.isfinite(sum(outputs.tolist())):  # 10 times faster than numpy for few values
            self.skip("answer-not-finite", cut.last_us)
            return
        revealed = cut.truth is not None and self._is_label_revealed(cut.recorded_us)
        label = cut.truth if revealed else None
        self.put(
            Event(
                cut.last_us, engine.model, outputs, label, cut.segment,
                cut.first_us, cut.recorded_us, cut.mark_us, cut.truth,
            )
        )  # fmt: skip
        engine.latencies.append(time.perf_counter() - began)
        self.rate.events += 1

    def _failed(self, base: Engine, engine: Engine, exc: Exception) -> None:
        """Go back to the base or the previous version; raise the error if there is none."""
        if engine is not base:
            self.other.drop(f"failed: {exc}")
        elif not self.slots.go_back(engine.model, f"failed: {exc}"):
            raise exc

    def _is_label_revealed(self, recorded_us: int) -> bool:
        """Return whether a replay reveals this segment's true label to the device: a stable share,
        like a user's corrections. The other labels are only used for measuring. A sensor's labels
        are all told: somebody gave them."""
        digest = zlib.crc32(f"{self.device}/{recorded_us}".encode())
        given = self.label_share
        return digest < (self.task.training.label_share if given is None else given) * 2**32

    @property
    def hangs(self) -> bool:
        """Whether the current inference hangs in native code."""
        began = self._began
        limit_s = max(HANGS_S, 10 * self.task.latency_budget_s)
        return began is not None and time.perf_counter() - began > limit_s
