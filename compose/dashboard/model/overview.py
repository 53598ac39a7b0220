"""The first page: the loop with its rates, and what is wrong. Pure."""

from collections import Counter

from pydantic import BaseModel

from compose.dashboard.model.observed import Observed, counted
from compose.dashboard.model.problems import Problem, problems
from compose.dashboard.model.recent import SLOT_S
from compose.reports.status import release_line
from streams.contract.window_metrics import ERRORS
from streams.fleet.timeline import Entry
from streams.fleet.view import FleetView, model_number

HAPPENINGS = 12
VERSIONS = 8


class Stations(BaseModel):
    """The loop. devices: by condition. passed, judged: runs that the gate let through, and all.
    run, rollout: what is under way, in words; None if nothing
    is. serving: devices by version, the newest first."""

    devices: dict[str, int]
    produced_per_s: float
    pending: int
    lag: int | None
    scored_per_s: float
    windows_per_s: float
    windows: int
    run: str | None
    passed: int
    judged: int
    rollout: str | None
    released: str
    serving: dict[str, int]


class Point(BaseModel):
    """SLOT_S of the fleet, from at_us on; None where nothing is known. value: by version."""

    at_us: int
    scored_per_s: float
    produced_per_s: float | None
    windows: int
    pending: int | None
    lag: int | None
    value: dict[str, float | None]


class Overview(BaseModel):
    """metric: what `value` is, for a person; lower_is_better: whether it is an error."""

    task: str
    at_us: int
    connected: bool
    complete: bool
    problems: list[Problem]
    stations: Stations
    metric: str
    lower_is_better: bool
    history: list[Point]
    happenings: list[Entry]


def overview(seen: Observed) -> Overview:
    """Return the page; happenings are the newest first."""
    view = seen.view
    agreement = next(reversed(list(view.agreement.values())), None)
    entries = sorted(view.timeline.known.values(), key=lambda entry: -entry.time_us)[:HAPPENINGS]
    return Overview(
        task=view.task,
        at_us=int(seen.as_of_s * 1e6),
        connected=not seen.link.why,
        complete=seen.link.complete,
        problems=problems(seen),
        stations=stations(seen),
        metric=agreement.called if agreement else "agreement with the teacher",
        lower_is_better=agreement is not None and agreement.metric in ERRORS,
        history=history(seen),
        happenings=entries,
    )


def stations(seen: Observed) -> Stations:
    view, status, states = seen.view, seen.status, seen.view.devices.values()
    serving = Counter(state.active or "no model" for state in states)
    newest = sorted(serving, key=model_number, reverse=True)[:VERSIONS]
    return Stations(
        devices=counted(status, states),
        produced_per_s=status.produced_per_s,
        pending=seen.pending,
        lag=seen.lag.messages if seen.lag.partitions else None,
        scored_per_s=status.scored_per_s,
        windows_per_s=seen.beside.recent.windows_per_s(seen.as_of_s),
        windows=view.windows,
        run=run_line(view),
        passed=view.count("promoted"),
        judged=view.count("promoted") + view.count("rejected"),
        rollout=rollout_line(view),
        released=release_line(view.standing),
        serving={model: serving[model] for model in newest},
    )


def run_line(view: FleetView) -> str | None:
    """Return what the current run does; None if none is under way."""
    events = view.current_run
    if not events or events[-1].kind == "finished":
        return None
    last = events[-1]
    if not last.round:
        return f"run {last.run} is starting"
    return f"round {last.round} of {last.rounds}: {last.kind}" if last.rounds else last.kind


def rollout_line(view: FleetView) -> str | None:
    standing = view.standing
    if standing.offered is not None:
        return f"{standing.offered.model} offered to {standing.share:.0%}, stage {standing.stage}"
    if standing.candidate is not None:
        return f"{standing.candidate.model} waits for its canary"
    return None


def history(seen: Observed) -> list[Point]:
    """Return the whole slots, oldest first; the one that still fills is left out."""
    now = int(seen.as_of_s // SLOT_S)
    return [
        Point(
            at_us=number * SLOT_S * 1_000_000,
            scored_per_s=slot.events / SLOT_S,
            produced_per_s=slot.produced_per_s,
            windows=slot.windows,
            pending=slot.pending,
            lag=slot.lag,
            value={release: found.value for release, found in slot.releases.items()},
        )
        for number, slot in sorted(seen.beside.recent.slots.items())
        if number < now
    ]
