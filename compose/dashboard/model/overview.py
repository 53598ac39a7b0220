"""The first page: the loop with its rates, and what is wrong. Pure."""

from collections import Counter
from collections.abc import Mapping

from pydantic import BaseModel

from compose.dashboard.model.observed import Observed
from compose.dashboard.model.problems import Problem, problems
from compose.dashboard.model.recent import DAY_SLOT_S, SLOT_S, SLOTS, Slot
from compose.reports.status import release_line
from streams.contract.window_metrics import added, value_of
from streams.fleet.timeline import Entry
from streams.fleet.view import FleetView, model_number
from streams.fleet.wording import run_progress

HAPPENINGS = 12
VERSIONS = 8
OVER_S = 60  # that a rate is of, at least: as in `tidewheel status`
HOUR_S, DAY_S = SLOT_S * SLOTS, DAY_SLOT_S * SLOTS


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
    """A slot of the fleet, up to at_us; None where nothing is known. scored_per_s and value, by
    version, are of at least the minute up to it."""

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


def overview(seen: Observed, span_s: int = HOUR_S) -> Overview:
    """Return the page; happenings are the newest first, the history is of the last `span_s`."""
    view = seen.view
    entries = sorted(view.timeline.known.values(), key=lambda entry: -entry.time_us)[:HAPPENINGS]
    return Overview(
        task=view.task,
        at_us=int(seen.as_of_s * 1e6),
        connected=not seen.link.why,
        complete=seen.link.complete,
        problems=problems(seen),
        stations=stations(seen),
        metric=view.latest_agreement.called,
        lower_is_better=view.latest_agreement.lower_is_better,
        history=history(seen, span_s),
        happenings=entries,
    )


def stations(seen: Observed) -> Stations:
    view, status, states = seen.view, seen.status, seen.view.devices.values()
    serving = Counter(state.active or "no model" for state in states)
    newest = sorted(serving, key=model_number, reverse=True)[:VERSIONS]
    return Stations(
        devices=seen.counted(),
        produced_per_s=status.produced_per_s,
        pending=seen.pending,
        lag=seen.lag.messages if seen.lag.partitions else None,
        scored_per_s=status.scored_per_s,
        windows_per_s=seen.beside.recent.windows_per_s(seen.as_of_s),
        windows=view.windows,
        run=run_progress(view.current_run),
        passed=view.count("promoted"),
        judged=view.count("promoted") + view.count("rejected"),
        rollout=rollout_line(view),
        released=release_line(view),
        serving={model: serving[model] for model in newest},
    )


def rollout_line(view: FleetView) -> str | None:
    standing = view.standing
    if standing.offered is not None:
        where = f"{standing.offered.model} offered to {view.offered_to}, stage {standing.stage}"
        return f"{where}, paused" if standing.paused else where
    if standing.candidate is not None:
        return f"{standing.candidate.model} waits for its canary"
    return None


def history(seen: Observed, span_s: int = HOUR_S) -> list[Point]:
    """Return a point for each whole slot of the last `span_s`, oldest first. Rates and values are
    of OVER_S up to it, as windows come in groups; the slot that still fills is left out."""
    slot_s = SLOT_S if span_s <= HOUR_S else DAY_SLOT_S
    slots, now = seen.beside.recent.histories[slot_s], int(seen.as_of_s // slot_s)
    over = max(1, OVER_S // slot_s)
    first = max(min(slots, default=now) + over - 1, now - min(span_s // slot_s, SLOTS))
    return [_point(slots, number, slot_s, over) for number in range(first, now)]


def _point(slots: Mapping[int, Slot], number: int, slot_s: int, over: int) -> Point:
    here = slots.get(number, Slot())
    last = [slots[n] for n in range(number - over + 1, number + 1) if n in slots]
    names = {name for slot in last for name in slot.releases}
    value = {}
    for name in names:
        parts = [slot.releases[name] for slot in last if name in slot.releases]
        same = [part.sums for part in parts if part.metric == parts[-1].metric]
        value[name] = value_of(parts[-1].metric, added(same))
    return Point(
        at_us=(number + 1) * slot_s * 1_000_000,
        scored_per_s=sum(slot.events for slot in last) / (over * slot_s),
        produced_per_s=here.produced_per_s,
        windows=here.windows,
        pending=here.pending,
        lag=here.lag,
        value=value,
    )
