"""The evidence about a canary grows on the page as the controller's own rule has it."""

from collections.abc import Iterator

import pytest

from compose.dashboard.model.observed import Beside
from compose.dashboard.model.rollouts import releases
from federation.rollout.stage_policy import StageRules
from streams.contract.decisions import rollout_position
from streams.fleet.view import FleetView
from streams.kafka.reader import Received
from tests.compose.dashboard.made_up import (
    CANARY,
    NOW_S,
    STABLE,
    at,
    decision,
    device,
    evaluate,
    observed,
)
from tests.compose.messages import TASK, window

NAMES = [f"d{n}" for n in range(12)]
SHARE, STAGE_S = 0.5, 300


def messages(agreeing: int) -> Iterator[Received]:
    """Half an hour of windows, the last minutes with a canary of which as many events agree."""
    for name in NAMES:
        yield device(name)
    yield decision(1, "served", STABLE, 4000, stable=STABLE)
    for ago_s in range(1800, 0, -20):
        if ago_s == STAGE_S:
            fields = {"stable": STABLE, "offered": CANARY, "share": SHARE, "stage": 1}
            yield decision(2, "stage", CANARY, ago_s, **fields)
        for n, name in enumerate(NAMES):
            new = ago_s < STAGE_S and rollout_position(TASK, name) < SHARE
            right = agreeing if new else 43 + (ago_s // 20 + n) % 5
            counts = {"events": 50, "compared": 50, "agreeing": right}
            start_s = round(NOW_S - ago_s)
            made = window(name, start_s, model=CANARY if new else STABLE, **counts)
            yield at(made, ago_s)


def watched(agreeing: int) -> Beside:
    beside = Beside(FleetView(TASK))
    for message in messages(agreeing):
        beside.absorb(message)
        if message.key == b"d11" and message.topic.endswith("windows"):
            evaluate(beside, message.time_ms * 1000)
    return beside


@pytest.mark.parametrize(
    ("agreeing", "verdict", "side"), [(30, "canary failed", "worse"), (47, "canary passed", "fine")]
)
def test_the_odds_grow_until_they_pass_the_bound_that_decides(
    agreeing: int, verdict: str, side: str
) -> None:
    beside = watched(agreeing)
    line = [getattr(point, side) for point in beside.canary.odds]
    assert 5 < len(line) <= 15  # since the first stage
    assert line[0] < StageRules().bounds[f"bound_{side}"] < line[-1]
    assert beside.canary.words.startswith(verdict)


def test_the_page_has_the_line_of_the_version_that_is_offered_and_of_no_other() -> None:
    beside = watched(47)
    seen = observed(link=None)
    seen = type(seen)(beside, seen.lag, seen.link, NOW_S)
    assert len(releases(seen).odds) == len(beside.canary.odds)
    beside.absorb(decision(3, "served", CANARY, 0, stable=CANARY))
    assert releases(seen).odds == []
    evaluate(beside, 1)
    assert (list(beside.canary.odds), beside.canary.words) == ([], "")
