"""The version that a device keeps although another one is served, while that is worse for it.

With `Training.choice` "device" a device that was offered the fleet's stable version compares it
with the one that answered before, on its own labelled segments (choice.py), and keeps that if there
is evidence that the other is worse here:

1. the artifact of the kept version is written to `kept.twa` (temporary, fsync, rename)
2. `kept.json` (KeptState) is written the same way: from now on it answers

It goes with the offered version again

1. `kept.json` is removed
2. `kept.twa` is removed

when the evidence is gone, after 30 days, when the kept version is withdrawn or
is served again, or when it raises. A later version is compared with the kept one. While a version
is offered to a part of the fleet its canary answers with it: nothing is kept against it, so the
canary is judged by what was offered.

After a crash before 2 of keeping it is compared again; after a crash in the middle of going back
`kept.twa` is an orphan, which the next keeping replaces. At a start the kept version answers at
once, without a comparison, if the version that it was kept against is active.

Answers have the model name `<version>.k<kept version>`: windows, scores and the device's accuracy
count them for the release, as what devices answer under it.
"""

import contextlib
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from edge_client.inference import choice
from edge_client.inference.engine import Engine
from edge_client.inference.loop import OtherEngine
from edge_client.inference.slots import Slots
from edge_client.samples.samples import Samples
from streams.contract.artifact import Artifact
from streams.contract.documents import KeptState
from streams.contract.errors import ArtifactError, MalformedRecord
from streams.contract.task import Task
from streams.runtime.disk import write_atomic

log = logging.getLogger(__name__)

COMPARED = 400  # segments at most
KEEP_H = 720.0


class Serving(NamedTuple):
    """The engine of the served version, and the one that answers in its place."""

    base: Engine
    kept: Engine


class KeptVersion:
    """The loop calls `engine_for` and `drop`, the keeper's thread `consider`."""

    def __init__(
        self,
        task: Task,
        folder: Path,
        slots: Slots,
        samples: Samples,
        other: OtherEngine,
        *,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._task, self._slots, self._samples, self._other = task, slots, samples, other
        self._model, self._file = folder / "kept.twa", folder / "kept.json"
        self._wall = wall
        self._serving: Serving | None = None
        self._base: Engine | None = None
        self._told_then = 0  # true labels at the last look
        self._done_with: str | None = None  # the version against which nothing is kept any more
        self.state: KeptState | None = None

    @property
    def told(self) -> KeptState | None:
        """What the device says of itself: nothing while a canary answers with what it is
        offered."""
        return self.state if self._serving is not None else None

    def engine_for(self, base: Engine) -> Engine:
        """Return the engine that answers while `base` is served."""
        serving = self._serving
        if serving is not None and serving.base is base:
            return serving.kept
        return self._other.engine_for(base)

    def drop(self, reason: str) -> None:
        """Give up what answered instead of the served version, because it failed."""
        if self._serving is None:
            self._other.drop(reason)
            return
        self._done_with = self._serving.base.model
        self._forget(reason)

    def consider(self) -> None:
        """Follow the served version, and look whether another one should answer."""
        base = self._slots.engine
        if base is None or self._task.training.choice != "device":
            return
        if base is not self._base:
            self._base, self._told_then = base, 0
            self._take_up(base)
        if self.state is not None and (why := self._outdated(self.state, base)):
            self._forget(why)
        told = self._samples.labels_told
        if base.model != self._slots.stable or base.model == self._done_with:
            return  # it is offered to a part of the fleet, or nothing is kept against it
        if choice.is_time_to_look(told, self._told_then):
            self._told_then = told
            self._look(base)

    def _take_up(self, base: Engine) -> None:
        """Load the kept version; it answers if it was kept against `base`."""
        self._serving = None
        try:
            self.state = KeptState.decode(self._file.read_bytes())
            if self.state.against == base.model:
                self._serve(base, Engine(self._task, self._stored(self.state.model)))
        except FileNotFoundError:
            self.state = None
        except (OSError, ArtifactError, MalformedRecord) as exc:
            self._forget(f"cannot be used: {exc}")

    def _stored(self, model: str) -> Artifact:
        artifact = self._slots.verified(self._model.read_bytes())
        if artifact.model != model:
            raise ArtifactError("name", f"{self._model} holds {artifact.model}")
        return artifact

    def _outdated(self, state: KeptState, base: Engine) -> str:
        """Return why a version is not kept any longer, empty if it is."""
        if (reason := self._slots.refused.get(state.model)) is not None:
            return reason
        if state.model == base.model:
            return "it is served"
        hours = (self._wall() * 1e6 - state.since_us) / 3600e6
        if hours > KEEP_H:
            self._done_with = state.against
            return f"kept for {hours:.0f} h"
        return ""

    def _look(self, base: Engine) -> None:
        """Compare the version that answered before with the one that would answer now."""
        before = self._before()
        if before is None:
            return
        made_us = max(base.created_us, before.created_us)
        segments, labels, covered = self._samples.choosing(COMPARED, made_us)
        if len(labels) < choice.LEAST or covered < choice.COVERED:
            return
        try:
            old, offered = (
                choice.losses(self._task, answers(engine, segments), labels)
                for engine in (before, self._other.engine_for(base))
            )
        except Exception as exc:  # onnxruntime may fail
            log.warning("%s is not compared with %s: %s", before.model, base.model, exc)
            return
        found = choice.compare(self._task, old, offered)
        keeping = self._serving is not None
        if found.keeps(keeping=keeping):
            self._keep(base, before, found)
        elif self.state is not None:
            self._forget(f"{found.old:.3f} against {found.offered:.3f} on {found.rows} segments")

    def _before(self) -> Engine | None:
        """Return the version that answered before: the kept one, or the previous one."""
        if self._serving is not None:
            return self._serving.kept
        try:
            if self.state is not None:
                return Engine(self._task, self._stored(self.state.model))
            previous = self._slots.previous
            if previous is None or previous in self._slots.refused:
                return None
            return Engine(self._task, self._slots.kept(previous))
        except (OSError, ArtifactError) as exc:
            log.warning("the version before is not compared: %s", exc)
            return None

    def _keep(self, base: Engine, before: Engine, found: choice.Comparison) -> None:
        model = before.model.rpartition(".k")[2]
        new = self.state is None or self.state.against != base.model
        since_us = int(self._wall() * 1e6) if self.state is None else self.state.since_us
        state = KeptState(
            model=model, against=base.model, segments=found.rows, loss=found.old,
            offered_loss=found.offered, since_us=since_us,
        )  # fmt: skip
        try:
            if self.state is None:
                write_atomic(self._model, self._slots.bytes_of(model))
            write_atomic(self._file, state.encode())
        except OSError as exc:
            log.warning("%s is not kept: %s", model, exc)
            return
        self.state = state
        if new:
            log.info("keeps %s against %s: loss %.3f, not %.3f, on %d segments", model,
                     base.model, found.old, found.offered, found.rows)  # fmt: skip
            self._serve(base, before)

    def _serve(self, base: Engine, kept: Engine) -> None:
        assert self.state is not None
        kept.model = f"{base.model}.k{self.state.model}"
        kept.latencies = base.latencies  # they count for the served version's trial
        self._serving = Serving(base, kept)

    def _forget(self, reason: str) -> None:
        if self.state is not None:
            log.info("no longer keeps %s: %s", self.state.model, reason)
        self._serving = self.state = None
        for path in (self._file, self._model):
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)


def answers(engine: Engine, segments: np.ndarray) -> np.ndarray:
    """Return the outputs (n, outputs) of segments, one at a time as for events."""
    return np.stack([engine.run(segment) for segment in segments])
