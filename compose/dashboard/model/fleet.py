"""The list of devices: filtered, sorted, one page of it. Pure."""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import BaseModel, Field

from compose.dashboard.model.observed import CONDITIONS, Observed
from streams.contract.decisions import WITHDRAWN
from streams.contract.documents import DeviceState
from streams.contract.task import Task
from streams.contract.task.metrics import named
from streams.fleet.view import model_number

SIZE, LARGEST = 50, 500
TREND = 24  # windows
OF_TASK = "group:"


class FleetQuery(BaseModel):
    """Which devices: those whose name, version or error has `search` in it, of the `group`: a
    condition, a version, "refusing", or "group:" and a group of the task. page counts from 1."""

    search: str = Field(default="", max_length=200)
    group: str = Field(default="", max_length=100)
    sort: str = Field(default="condition", max_length=30)
    descending: bool = False
    page: int = Field(default=1, ge=1, le=10**6)
    size: int = Field(default=SIZE, ge=1, le=LARGEST)


class FleetRow(BaseModel):
    """A device in the list. activity: its error, or its phase. score: over its labelled answers, in
    `metric`; last_window: in `window_metric`; trend: of its last ones, oldest first."""

    device: str
    condition: str
    activity: str
    version: str
    events_per_s: float
    produced: int
    pending: int
    dropped: int
    score: float | None
    last_window: float | None
    trend: list[float]
    drift: str
    seen_us: int


class FleetPage(BaseModel):
    """One page of the list. total: devices in all; matching: those that the query leaves. groups:
    devices by condition, by version, by the task's groups, and how many refuse a version."""

    total: int
    matching: int
    pages: int
    query: FleetQuery
    metric: str
    window_metric: str
    conditions: dict[str, int]
    versions: dict[str, int]
    groups: dict[str, int]
    refusing: int
    rows: list[FleetRow]


Key = Callable[[Observed, DeviceState], Any]


def _score(_seen: Observed, state: DeviceState) -> float:
    score = state.accuracy.get(state.active)
    found = score.of_labelled if score else None
    return -1.0 if found is None else found


SORTS: Mapping[str, Key] = {
    "device": lambda _, state: state.device,
    "condition": lambda seen, state: CONDITIONS.index(seen.conditions[state.device]),
    "activity": lambda _, state: state.error or state.phase,
    "version": lambda _, state: (model_number(state.active), state.active),
    "events_per_s": lambda _, state: state.events_per_s,
    "produced": lambda _, state: state.produced,
    "pending": lambda _, state: state.pending,
    "dropped": lambda _, state: sum(state.dropped.values()),
    "score": _score,
    "seen_us": lambda _, state: state.time_us,
}
DESCENDING = ("events_per_s", "produced", "pending", "dropped", "seen_us")  # at first


def groups_of(task: Task) -> dict[str, str]:
    """Return the groups that the task puts its devices in."""
    return {device.name: device.group for device in task.devices() if device.group}


def refuses(state: DeviceState) -> bool:
    return any(not reason.startswith(WITHDRAWN) for reason in state.refused.values())


def fleet_page(
    seen: Observed, query: FleetQuery, groups: Mapping[str, str] | None = None
) -> FleetPage:
    """Return the page that the query asks for; an unknown sort is that by condition, a page past
    the end the last one. groups: of the task, by device."""
    of = groups or {}
    states = list(seen.view.everyone.values())
    chosen = [state for state in states if _matches(seen, state, query, of)]
    chosen.sort(key=lambda state: state.device)
    key = SORTS.get(query.sort, SORTS["condition"])
    chosen.sort(key=lambda state: key(seen, state), reverse=query.descending)
    pages = max(1, -(-len(chosen) // query.size))
    page = min(query.page, pages)
    shown = chosen[(page - 1) * query.size : page * query.size]
    versions = Counter(state.active for state in states if state.active)
    return FleetPage(
        total=len(states),
        matching=len(chosen),
        pages=pages,
        query=query.model_copy(update={"page": page}),
        metric=named(seen.view.row_metric),
        window_metric=seen.view.latest_agreement.called,
        conditions=seen.counted(),
        versions=dict(sorted(versions.items(), key=lambda each: -model_number(each[0]))),
        groups=dict(sorted(Counter(of[s.device] for s in states if s.device in of).items())),
        refusing=sum(refuses(state) for state in states),
        rows=[row_of(seen, state) for state in shown],
    )


def _matches(
    seen: Observed, state: DeviceState, query: FleetQuery, groups: Mapping[str, str]
) -> bool:
    if query.search:
        where = f"{state.device} {state.active} {state.error or ''}".lower()
        if query.search.lower() not in where:
            return False
    if not query.group:
        return True
    if query.group.startswith(OF_TASK):
        return groups.get(state.device) == query.group.removeprefix(OF_TASK)
    if query.group == "refusing":
        return refuses(state)
    return query.group in (state.active, seen.conditions[state.device])


def row_of(seen: Observed, state: DeviceState) -> FleetRow:
    last = seen.beside.recent.last(state.device)
    score, drift = state.accuracy.get(state.active), seen.view.drift.get(state.device)
    return FleetRow(
        device=state.device,
        condition=seen.conditions[state.device],
        activity=state.error or state.phase,
        version=state.active,
        events_per_s=state.events_per_s,
        produced=state.produced,
        pending=state.pending,
        dropped=sum(state.dropped.values()),
        score=score.of_labelled if score else None,
        last_window=last.value if last else None,
        trend=seen.beside.recent.trend(state.device, TREND),
        drift="-" if drift is None else (drift.worst or "drifts") if drift.alarm else "none",
        seen_us=state.time_us,
    )
