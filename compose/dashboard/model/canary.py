"""The evidence about a canary as it grows, by the controller's own rule. Pure.

The console reads the same windows as the controller and asks the same function
(`federation.rollout.stage_policy.evaluate`), so the line shows what the controller's next decision
is made of. It may differ a little: the console keeps KEPT windows of a device.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from pydantic import BaseModel

from federation.rollout.stage_policy import StageRules, StageVerdict, evaluate
from federation.rollout.window_history import WindowHistory
from streams.contract.decisions import WITHDRAWN, rollout_position
from streams.contract.task import Task
from streams.contract.task.metrics import window_metric
from streams.contract.window_report import WindowReport
from streams.fleet.view import FleetView

KEPT, POINTS = 60, 500
LARGEST = 1e6  # of odds that are shown


class Odds(BaseModel):
    """The likelihood ratios at one moment: that the canary is worse to that it is not, and the
    other way round, against a loss that matters."""

    at_us: int
    worse: float
    fine: float


@dataclass(frozen=True)
class Question:
    """An evaluation of a version at one moment: it needs no lock, and takes a second for 10,000
    devices."""

    version: str
    at_us: int
    evaluate: Callable[[], StageVerdict]


@dataclass
class Canary:
    """Windows of the fleet for an evaluation, and its results for the version that is offered."""

    rules: StageRules = field(default_factory=StageRules)
    windows: WindowHistory = field(default_factory=lambda: WindowHistory(KEPT))
    version: str = ""
    odds: deque[Odds] = field(default_factory=lambda: deque(maxlen=POINTS))
    words: str = ""

    @classmethod
    def of(cls, task: Task) -> "Canary":
        metric = window_metric(task)
        rules = StageRules(metric=metric, by_labels=task.upload == "prediction")
        return cls(rules, WindowHistory(KEPT, metric, task.classes))

    def add(self, report: WindowReport, heard_us: int) -> None:
        self.windows.add(report, heard_us)

    def question(self, view: FleetView, now_us: int) -> Question | None:
        """Return what is to be evaluated now, with copies of what others change; None where no
        version is offered."""
        offered = view.standing.offered
        if offered is None or offered.model != self.version:
            self.odds.clear()
            self.words, self.version = "", offered.model if offered else ""
        return None if offered is None else self._question(view, now_us)

    def note(self, question: Question, found: StageVerdict) -> None:
        """Keep what was found, unless another version is offered by now."""
        if question.version != self.version:
            return
        worse, fine = (min(found.evidence[name], LARGEST) for name in ("e_worse", "e_fine"))
        self.odds.append(Odds(at_us=question.at_us, worse=worse, fine=fine))
        self.words = found.reason

    def _question(self, view: FleetView, now_us: int) -> Question | None:
        desired, model = view.standing, self.version
        stages = [
            d.time_us
            for _, d in sorted(view.decisions.items())
            if d.kind == "stage" and d.model == model
        ]
        if not stages:
            return None
        states = [
            state
            for state in view.devices.values()
            if rollout_position(view.task, state.device) < desired.share
        ]
        refusals = {
            state.device: reason
            for state in states
            if (reason := state.refused.get(model)) and not reason.startswith(WITHDRAWN)
        }
        task, share = view.task, desired.share
        asked = partial(
            evaluate,
            self.rules,
            self.windows.copy(),
            candidate=model,
            stable=desired.stable.model if desired.stable else "",
            began_us=stages[0],
            stage_began_us=stages[-1],
            now_us=now_us,
            canary=lambda device: rollout_position(task, device) < share,
            refusals=refusals,
            offered=max(len(states), 1),
        )
        return Question(model, now_us, asked)
