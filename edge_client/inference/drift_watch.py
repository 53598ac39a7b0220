"""Whether the device's own sensor has drifted: by the reference that is signed with the release, or
by the device's labels.

The device compares as the worker does (streams.learning.drift_detector). It needs no connection for
that, and a task that uploads no segments has the same alarm. What it compares are the segments in
memory.

    inputs   the latest segments, of at most the reference's windows, alarm. It begins when there is
             an alarm for LASTING windows, and ends when there is none for longer: what has
             drifted need not show in each of the device's activities
    labels   answers in those windows are worse than earlier ones under the same release, by WORSE
             of a loss and by SIGMA standard errors, for LASTING windows: what the inputs do not
             show, or not enough. It ends once SETTLED segments have come

Samples.mark_drift notes either, since the first of these windows, and a restart finds it.
"""

import logging
import math

import numpy as np

from edge_client.inference import choice
from edge_client.inference.engine import Engine
from edge_client.inference.slots import Slots
from edge_client.samples.samples import Samples
from streams.contract.artifact import DRIFT
from streams.contract.errors import ArtifactError, MalformedRecord
from streams.contract.task import Task
from streams.contract.window_report import DriftReport
from streams.learning.drift_detector import compare
from streams.learning.drift_reference import WINDOWS, Reference, observe

log = logging.getLogger(__name__)

LASTING = {True: 3, False: 12}  # windows, until an alarm begins, and until it ends
EARLIER, WORSE, SIGMA = 20, 0.1, 3.0  # labels to compare with; losses; standard errors
SETTLED = 512  # segments
RETURNED = 0.25


def _worst(report: DriftReport) -> float:
    """Return the largest ratio of a channel's PSI to its threshold."""
    ratios = (c.psi / c.threshold for c in report.channels if c.kind != "answer")
    return max(ratios, default=0.0)


class DriftWatch:
    """`look` is called by the keeper's thread, every few seconds."""

    def __init__(self, task: Task, slots: Slots, samples: Samples) -> None:
        self._task, self._slots, self._samples = task, slots, samples
        self._model: str | None = None
        self.reference: Reference | None = None
        self._window = -1  # the last one that was compared
        self._served_us = 0  # the event time since which the release is served; 0: not known
        self._other_since: int | None = None  # the window in which the alarm changed

    def look(self, base: Engine) -> None:
        """Compare what the device has seen, once a window."""
        another = self._read(base.model)
        windows = self.reference.windows if self.reference is not None else WINDOWS
        found, times, segments, answers = self._samples.latest(windows)
        if another and len(times):
            self._served_us = int(times[-1])
        if not len(times) or (window := int(times[-1]) // self._task.window_us) == self._window:
            return
        self._window, samples = window, self._samples
        if samples.drifting == "labels" and samples.added_since >= SETTLED:
            samples.drifting = ""
        report = None
        if self.reference is not None and samples.drifting != "labels":
            report = compare(self.reference, self._counted(segments, answers), windows=found)
        now = samples.drifting
        if report is not None and report.decided:
            now = "inputs" if report.alarm else ""
        if now == samples.drifting and self._is_worse(int(times[0])):
            now = "labels"
        elif now == samples.drifting:
            self._other_since = None
            return
        if self._other_since is None:
            self._other_since = window
        if window - self._other_since + 1 >= LASTING[bool(now)]:
            channel = report.worst if report is not None and now == "inputs" else "the answers"
            log.warning("drift: %s", f"{channel} by {now}" if now else "it is over")
            samples.mark_drift(now, self._other_since * self._task.window_us)
            self._other_since = None

    def _is_worse(self, since_us: int) -> bool:
        """Return whether answers from then on are worse than before, by labels."""
        times, outputs, labels = self._samples.answered()
        losses, late = choice.losses(self._task, outputs, labels), times >= since_us
        before, now = losses[~late & (times > self._served_us)], losses[late]
        if len(before) < EARLIER or len(now) < choice.LEAST:
            return False
        scale = 1.0 if self._task.classes else float(losses.mean())
        least = (0.1 * scale) ** 2  # of a variance, of answers that are all right
        error = math.sqrt(max(before.var(), least) / len(before) + max(now.var(), least) / len(now))
        error /= math.sqrt(choice.independent_share(self._task, times))
        return bool(now.mean() - before.mean() > max(WORSE * scale, SIGMA * error))

    def is_mended(self, engine: Engine) -> bool:
        """Return whether the latest segments, as an adapter's engine reads and answers them, are
        like the reference: no channel's PSI is above its threshold and a quarter of what it was,
        and the answers do not alarm. Of one class alone no map makes answers of all."""
        if self.reference is None or engine.adapter is None:
            return False
        windows, _, segments, plain = self._samples.latest(self.reference.windows)
        adapted, answers = engine.adapter.apply(segments), engine.answers(segments)
        before, after = (
            compare(self.reference, self._counted(*each), windows=windows)
            for each in ((segments, plain), (adapted, answers))
        )
        if any(c.kind == "answer" and c.psi > c.threshold for c in after.channels):
            return False
        return after.decided and _worst(after) <= max(1.0, RETURNED * _worst(before))

    def _counted(self, segments: np.ndarray, answers: np.ndarray) -> np.ndarray:
        assert self.reference is not None
        return self.reference.count(observe(self._task, segments, answers))

    def _read(self, model: str) -> bool:
        """Read the reference of a release, once; return whether another was served before."""
        if model == self._model:
            return False
        another, self._model, self.reference = self._model is not None, model, None
        try:
            self.reference = Reference.decode(self._slots.kept(model).files[DRIFT])
        except KeyError:
            log.debug("%s has no reference", model)
        except (ArtifactError, MalformedRecord, OSError) as exc:
            log.warning("%s: no drift is looked for: %s", model, exc)
        return another
