"""How often the judge of rollouts errs, in simulated rollouts on real people's windows."""

from tests.bench.release.rollouts import OTHERS, USUAL, rollouts
from tests.bench.release.stage import Stage
from tests.bench.report import Cell, Goal, Results, Table

COUNT = 100
KINDS = (USUAL, *(rollout for rollout in OTHERS if rollout.canary == 5))
EQUAL, WORSE = "the same weights", "worse by 5 points"


def verdicts(stage: Stage, results: Results) -> None:
    """Canaries of 3 and 5 devices; candidates that are equally good, and worse."""
    kinds = KINDS[:1] if stage.quick else KINDS
    found = rollouts(20 if stage.quick else COUNT, kinds)
    rows: list[list[Cell]] = []
    for name, one in found.items():
        candidate, _, kind = name.partition("; ")
        fields = ("rollouts", "agreement", "went_back", "passed", "undecided")
        rows.append(
            [candidate, kind, *(one[f] for f in fields), one["windows_median"], one["windows_95"]]
        )
        if kind == USUAL.name and candidate == EQUAL:
            rate = one["went_back"] / one["rollouts"]
            results.goals.append(Goal("an equal version rolled back, share", rate, at_most=0.05))
        if kind == USUAL.name and candidate == WORSE:
            rate = one["passed"] / one["rollouts"]
            results.goals.append(Goal("worse by 5 points and passed, share", rate, at_most=0.05))
    results.tables.append(
        Table(
            "Rollouts that are judged, and misjudged",
            "Real people's windows of HAR, answered by real models; who is in the canary, where in "
            "the recordings each device stands and how long its past is are drawn by lot. At most "
            "0.05 of equal versions may go back and of those that lose 5 points may pass, in a "
            "whole rollout. A rollout ends undecided after 100 windows a device.",
            [
                "candidate", "canary", "rollouts", "agreement", "went back", "passed",
                "undecided", "windows, median", "windows, 95 %",
            ],
            rows,
        )
    )  # fmt: skip
