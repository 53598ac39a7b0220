"""What the pages of overview, fleet and data quality show, as values for their templates; and what
a chart shows, as `static/console.js` draws it (<tw-chart>). Pure.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from pydantic import BaseModel, Field

from compose.console.history import DAY_SLOT_S, SLOT_S, SLOTS, Slot
from compose.console.watch import Moment
from compose.reports.dead_letters import DeadLetter, join_parts
from compose.reports.status import release_line
from streams.contract.decisions import WITHDRAWN
from streams.contract.documents import DeviceState, model_number
from streams.contract.task import Task
from streams.contract.task.metrics import named
from streams.contract.topics import EVENTS
from streams.contract.window_metrics import Judgement, named_of, value_of
from streams.fleet.view import CONDITIONS, FleetView
from streams.fleet.wording import run_progress
from streams.kafka.readable import rows_of
from streams.kafka.reader import Received

# Okabe and Ito (2008): told apart by people with any kind of colour vision.
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#8C7A3F")
NO_VERSION = "#8a929b"
Points = list[tuple[float, float | None]]  # time in milliseconds, or a place from 0; value


def colour(version: str | None) -> str:
    """Return a version's colour, the same on every page."""
    number = model_number(version or "")
    return NO_VERSION if number < 0 else PALETTE[(number - 1) % len(PALETTE)]


def series(name: str, shade: str, points: Points, kind: str = "line") -> dict[str, Any]:
    """Return one line, or bars; values have four digits."""
    rounded = [(x, None if y is None else float(f"{y:.4g}")) for x, y in points]
    return {"name": name, "colour": shade, "points": rounded, "kind": kind}


def chart(label: str, lines: Sequence[dict[str, Any]], **options: Any) -> dict[str, Any]:
    """Return a chart; label: for who cannot see it. min, max: of the axis; log: powers of ten;
    names: of places, in the place of times."""
    return {"label": label, "series": [each for each in lines if each["points"]], **options}


def share_axis(lines: Sequence[dict[str, Any]], *, shares: bool) -> dict[str, float]:
    """Return the axis of shares, which ends at 1; none for other values."""
    values = [y for line in lines for _, y in line["points"] if y is not None]
    if not shares or not values:
        return {}
    return {"min": max(0.0, math.floor(10 * min(values) - 0.2) / 10), "max": 1}


def spark(values: Sequence[float]) -> str:
    """Return values as the points of an SVG line, 70 wide and 20 high."""
    low, high = min(values, default=0.0), max(values, default=1.0)
    low, high = (low - 0.05, high + 0.05) if high - low < 0.1 else (low, high)
    wide = 68 / max(1, len(values) - 1)
    return " ".join(
        f"{1 + n * wide:.1f},{19 - 18 * (value - low) / (high - low):.1f}"
        for n, value in enumerate(values)
    )


def metric_title(metric: str, *, lower_is_better: bool) -> str:
    """Return a heading for what a chart shows."""
    better = "lower" if lower_is_better else "higher"
    return f"{metric[:1].upper()}{metric[1:]} ({better} is better)"


# --- pages ----------------------------------------------------------------------------------------

HOUR_S, DAY_S = SLOT_S * SLOTS, DAY_SLOT_S * SLOTS
OVER_S = 60  # that a rate is of, at least: as in `tidewheel status`
HAPPENINGS, VERSIONS = 12, 12

# --- overview -------------------------------------------------------------------------------------


def overview(moment: Moment, span_s: int = HOUR_S) -> dict[str, Any]:
    """Return the loop with its rates, and what is wrong; charts are of the last `span_s`."""
    view, metric = moment.view, moment.view.latest_agreement
    serving = Counter(state.active or "no model" for state in view.devices.values())
    happenings = sorted(view.timeline.lines, key=lambda entry: -entry.time_us)
    return {
        "problems": moment.problems,
        "conditions": {name: n for name, n in moment.counts.items() if n},
        "moment": moment,
        "windows_per_s": moment.history.windows_per_s(moment.now_s),
        "run": run_progress(view.current_run),
        "judged": view.count("promoted") + view.count("rejected"),
        "rollout": rollout_line(view),
        "released": release_line(view),
        "serving": sorted(serving.items(), key=lambda each: -model_number(each[0]))[:8],
        "heading": metric_title(metric.called, lower_is_better=metric.lower_is_better),
        "charts": _overview_charts(moment, span_s),
        "happenings": happenings[:HAPPENINGS],
        "span_s": span_s,
    }


def rollout_line(view: FleetView) -> str | None:
    standing = view.standing
    if standing.offered is not None:
        where = f"{standing.offered.model} offered to {view.offered_to}, stage {standing.stage}"
        return f"{where}, paused" if standing.paused else where
    if standing.candidate is not None:
        return f"{standing.candidate.model} waits for its canary"
    return None


class Point(NamedTuple):
    """A slot of the fleet, up to at_ms; None where nothing is known. scored_per_s and value, by
    version, are of at least the minute up to it; a value is by the judge of the whole: values by
    labels and by the teacher are not compared."""

    at_ms: int
    scored_per_s: float
    produced_per_s: float | None
    value: dict[str, float | None]


def rates(moment: Moment, span_s: int = HOUR_S) -> list[Point]:
    """Return a point for each whole slot of the last `span_s`, oldest first. Rates and values are
    of OVER_S up to it, as windows come in groups; the slot that still fills is left out."""
    slot_s = SLOT_S if span_s <= HOUR_S else DAY_SLOT_S
    slots, now = moment.history.slots[slot_s], int(moment.now_s // slot_s)
    over = max(1, OVER_S // slot_s)
    first = max(min(slots, default=now) + over - 1, now - min(span_s // slot_s, SLOTS))
    by_labels = moment.view.latest_agreement.by_labels
    return [_point(slots, number, slot_s, over, by_labels) for number in range(first, now)]


def _point(
    slots: Mapping[int, Slot], number: int, slot_s: int, over: int, by_labels: bool
) -> Point:
    last = [slots[n] for n in range(number - over + 1, number + 1) if n in slots]
    value = {}
    for name in {name for slot in last for name in slot.versions}:
        parts = [slot.versions[name] for slot in last if name in slot.versions]
        same = [part.judgement for part in parts if part.metric == parts[-1].metric]
        judged = sum(same, Judgement())
        known = judged.by_labels == by_labels
        value[name] = value_of(parts[-1].metric, judged.sums) if known else None
    scored = sum(slot.events for slot in last) / (over * slot_s)
    here = slots.get(number, Slot())
    return Point((number + 1) * slot_s * 1000, scored, here.produced_per_s, value)


def _overview_charts(moment: Moment, span_s: int) -> list[dict[str, Any]]:
    points = rates(moment, span_s)
    events = [
        series("produced", PALETTE[5], [(p.at_ms, p.produced_per_s) for p in points]),
        series("scored", PALETTE[0], [(p.at_ms, p.scored_per_s) for p in points]),
    ]
    names = sorted({name for point in points for name in point.value})
    values = [
        series(name, colour(name), [(p.at_ms, p.value.get(name)) for p in points]) for name in names
    ]
    axis = share_axis(values, shares=not moment.view.latest_agreement.lower_is_better)
    return [chart("Events a second", events, min=0), chart("The metric by version", values, **axis)]


# --- fleet ----------------------------------------------------------------------------------------


class FleetQuery(BaseModel):
    """Which devices: those whose name, version or error has `search` in it, of the `group`: a
    condition, a version, "refusing", or "group:" and a group of the task. page counts from 1."""

    search: str = Field(default="", max_length=200)
    group: str = Field(default="", max_length=100)
    sort: str = Field(default="condition", max_length=30)
    descending: bool = False
    page: int = Field(default=1, ge=1, le=10**6)
    size: int = Field(default=50, ge=1, le=500)


def score_of(state: DeviceState) -> float | None:
    score = state.accuracy.get(state.active)
    return score.of_labelled if score else None


SORTS: Mapping[str, Callable[[Moment, DeviceState], Any]] = {
    "device": lambda _, state: state.device,
    "condition": lambda m, state: CONDITIONS.index(m.status.conditions[state.device]),
    "activity": lambda _, state: state.error or state.phase,
    "version": lambda _, state: (model_number(state.active), state.active),
    "events_per_s": lambda _, state: state.events_per_s,
    "pending": lambda _, state: state.pending,
    "dropped": lambda _, state: sum(state.dropped.values()),
    "score": lambda _, state: -1.0 if (found := score_of(state)) is None else found,
    "seen": lambda _, state: state.time_us,
}
DESCENDING = ("events_per_s", "pending", "dropped", "seen")  # at first


def refuses(state: DeviceState) -> bool:
    return any(not reason.startswith(WITHDRAWN) for reason in state.refused.values())


def fleet(moment: Moment, query: FleetQuery, groups: Mapping[str, str]) -> dict[str, Any]:
    """Return the page of the list that is asked for; an unknown sort is that by condition, a page
    past the end the last one. groups: of the task, by device."""
    view, states = moment.view, list(moment.view.everyone.values())
    chosen = [state for state in states if _matches(moment, state, query, groups)]
    chosen.sort(key=lambda state: state.device)
    key = SORTS.get(query.sort, SORTS["condition"])
    chosen.sort(key=lambda state: key(moment, state), reverse=query.descending)
    pages = max(1, -(-len(chosen) // query.size))
    page = min(query.page, pages)
    shown = chosen[(page - 1) * query.size : page * query.size]
    versions = Counter(state.active for state in states if state.active)
    return {
        "moment": moment,
        "query": query.model_copy(update={"page": page}),
        "pages": pages,
        "total": len(states),
        "matching": len(chosen),
        "states": shown,
        "metric": named(view.row_metric),
        "window_metric": windows_called(moment, [state.device for state in shown]),
        "versions": sorted(versions.items(), key=lambda each: -model_number(each[0]))[:VERSIONS],
        "groups": sorted(Counter(groups[s.device] for s in states if s.device in groups).items()),
        "refusing": sum(refuses(state) for state in states),
    }


def windows_called(moment: Moment, devices: Iterable[str]) -> str:
    """Return what the values of devices' windows are called, by what judges each; where there are
    none, by what judges the fleet."""
    found = moment.view.latest_agreement
    windows = (window for name in devices for window in moment.history.windows(name))
    judges = {window.by_labels for window in windows if window.value is not None}
    return named_of(found.metric, judges or {found.by_labels})


def _matches(
    moment: Moment, state: DeviceState, query: FleetQuery, groups: Mapping[str, str]
) -> bool:
    where = f"{state.device} {state.active} {state.error or ''}".lower()
    if query.search.lower() not in where:
        return False
    if query.group.startswith("group:"):
        return groups.get(state.device) == query.group.removeprefix("group:")
    if query.group == "refusing":
        return refuses(state)
    return query.group in ("", state.active, moment.status.conditions[state.device])


# --- data quality ---------------------------------------------------------------------------------


def letters_of(moment: Moment) -> list[DeadLetter]:
    """Return the dead letters that are kept, the oldest first."""
    return join_parts(moment.history.letters)


def quality(moment: Moment, task: Task, offset: int | None) -> dict[str, Any]:
    """Return the newest dead letters, and the one at an offset with what can be decoded of it."""
    times = {m.offset: m.time_ms * 1000 for m in moment.history.letters}
    letters = letters_of(moment)[::-1]
    chosen = next((letter for letter in letters if letter.offset == offset), None)
    rows: list[dict[str, str]] = []
    if chosen is not None:
        message = Received("", 0, chosen.offset, chosen.key, chosen.value, chosen.headers)
        rows = [{name: f"{value}"[:200] for name, value in row.items() if name != "at"}
                for row in rows_of(task, EVENTS, message)[:3]]  # fmt: skip
    return {
        "reasons": Counter(each.reason for each in moment.view.refused).most_common(),
        "unreadable": moment.view.unreadable,
        "letters": letters,
        "times": times,
        "chosen": chosen,
        "rows": rows,
    }
