"""The evidence about a canary as it grows, by the controller's own function and on the same
windows, so the line shows what its next decision is made of. Pure.

It may differ a little: the console keeps WINDOWS windows of a device.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from federation.rollout.rollout import question
from federation.rollout.stage_policy import StageRules, StageVerdict
from federation.rollout.window_history import WindowHistory
from streams.contract.task import Task
from streams.contract.task.metrics import window_metric
from streams.fleet.view import FleetView

WINDOWS, POINTS = 60, 500


class Odds(NamedTuple):
    """The likelihood ratios at one moment: that the canary is worse to that it is not, and the
    other way round, against a loss that matters."""

    at_us: int
    worse: float
    fine: float


@dataclass
class Canary:
    """Windows of the fleet for an evaluation, and its results for the version that is offered;
    words: what the windows show."""

    rules: StageRules = field(default_factory=StageRules)
    windows: WindowHistory = field(default_factory=lambda: WindowHistory(WINDOWS))
    version: str = ""
    odds: deque[Odds] = field(default_factory=lambda: deque(maxlen=POINTS))
    words: str = ""

    @classmethod
    def of(cls, task: Task) -> "Canary":
        metric = window_metric(task)
        rules = StageRules(metric=metric, by_labels=task.upload == "prediction")
        return cls(rules, WindowHistory(WINDOWS, metric, task.classes))

    def ask(self, view: FleetView, now_us: int) -> Callable[[], StageVerdict] | None:
        """Return an evaluation that needs no lock, on a copy of the windows: it takes a second for
        10,000 devices. None where no version is offered."""
        offered = view.standing.offered
        if offered is None or offered.model != self.version:
            self.odds.clear()
            self.words, self.version = "", offered.model if offered else ""
        stages = [d.time_us for d in view.decided if d.kind == "stage" and d.model == self.version]
        if offered is None or not stages:
            return None
        return question(self.rules, view, self.windows.copy(), view.standing, stages, now_us)

    def note(self, version: str, at_us: int, found: StageVerdict) -> None:
        """Keep what was found, unless another version is offered by now."""
        if version == self.version:
            odds = (min(found.evidence[name], 1e6) for name in ("e_worse", "e_fine"))
            self.odds.append(Odds(at_us, *odds))
            self.words = found.reason
