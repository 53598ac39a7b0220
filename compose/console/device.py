"""What the page of a device shows, as values for its template. Pure."""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby, pairwise
from typing import Any, NamedTuple

from compose.console.history import Window
from compose.console.pages import (
    PALETTE,
    chart,
    metric_title,
    series,
    share_axis,
    windows_called,
)
from compose.console.watch import Moment
from streams.contract.accounting import DeviceAccount
from streams.contract.documents import DeviceState, model_number
from streams.contract.task.metrics import named
from streams.contract.window_report import (
    ChannelDrift,
    Confusion,
    DriftReport,
    FeatureHistogram,
)
from streams.fleet.truth import of_class, right
from streams.fleet.view import NO_AGENT

HAPPENINGS, REPORTS, TREND, CHANNELS = 20, 15, 24, 12
HISTOGRAMS, CELLS = 4, 64  # of a device, of a histogram


def device(moment: Moment, name: str) -> dict[str, Any] | None:
    """Return what the topics have about a device; None for a name that no device has."""
    view = moment.view
    if (state := view.everyone.get(name)) is None:
        return None
    reports, drift = moment.history.windows(name), moment.history.drift(name)
    windows, metric = in_order(reports), view.latest_agreement
    called = windows_called(moment, [name])
    values = series(called, PALETTE[0], [(w.end_us / 1000, w.value) for w in windows])
    axis = share_axis([values], shares=not metric.lower_is_better)
    epochs = [state, *view.ended.get(name, [])[::-1]] if state.phase != NO_AGENT else []
    happenings = [entry for entry in view.timeline.lines if entry.about == name]
    scores = sorted(state.accuracy.items(), key=lambda each: model_number(each[0]))
    return {
        "state": state,
        "condition": moment.status.conditions[name],
        "metric": named(view.row_metric),
        "accounts": [(s, balances(s)) for s in epochs[:3]],
        "spans": [(version, list(its)) for version, its in groupby(windows, lambda w: w.version)],
        "heading": metric_title(called, lower_is_better=metric.lower_is_better),
        "window_metric": called,
        "chart": chart("The metric by the end of the window", [values] if windows else [], **axis),
        "drift": drift,
        "channels": worst_first(drift)[:CHANNELS] if drift else [],
        "histograms": list(histograms(drift, moment.names)) if drift else [],
        "scores": scores,
        "confusion": confusion(view.truth.devices.get(name, {}).get(state.active, {})),
        "worse": [worse.text for worse in view.worse if worse.device == name],
        "reports": reports[::-1][:REPORTS],
        "happenings": happenings[::-1][:HAPPENINGS],
    }


def confusion(table: Confusion) -> dict[str, Any] | None:
    """Return the rows of a table by true class, None without a label."""
    known, of = right(table)
    if not of:
        return None
    answers = sorted({answer for row in table.values() for answer in row} | table.keys())
    rows = [(name, *of_class(table, name), [row.get(answer, 0) for answer in answers])
            for name, row in sorted(table.items())]  # fmt: skip
    return {"answers": answers, "rows": rows, "share": known / of, "labels": of}


def balances(state: DeviceState) -> bool:
    sides = state.produced, state.delivered, state.dropped, state.pending
    return DeviceAccount(*sides).balanced


def trend(moment: Moment, name: str) -> tuple[float | None, list[float]]:
    """Return the value of a device's last window, and those of its last windows that have one."""
    values = [window.value for window in moment.history.windows(name)]
    known = [value for value in values if value is not None]
    return (values[-1] if values else None), known[-TREND:]


def in_order(reports: Sequence[Window]) -> list[Window]:
    """Return one report of each window, that with most events, in the order of event times."""
    found: dict[int, Window] = {}
    for report in reports:
        if (before := found.get(report.window_us)) is None or before.events < report.events:
            found[report.window_us] = report
    return [found[window_us] for window_us in sorted(found)]


def worst_first(drift: DriftReport) -> list[ChannelDrift]:
    return sorted(drift.channels, key=lambda c: c.psi / max(c.threshold, 1e-9), reverse=True)


# --- histograms beside the reference --------------------------------------------------------------


class Cell(NamedTuple):
    """name: its bounds, its class or its category; reference, device: segments in it, and their
    shares."""

    name: str
    bounds: bool
    reference: float
    device: float


class Histogram(NamedTuple):
    """One of the features that have drifted most. Cells that are empty on both sides are left out,
    except those between bounds; largest: the largest share."""

    distance: ChannelDrift
    reference: int
    device: int
    cells: list[Cell]
    largest: float


Names = Mapping[str, Sequence[str]]  # of the indices of a channel of categories, or of the answers


def histograms(drift: DriftReport, names: Names) -> Iterator[Histogram]:
    """Yield the histograms of a report; those that make no sense are left out."""
    distances = {(c.channel, c.kind): c for c in drift.channels}
    for made in drift.histograms[:HISTOGRAMS]:
        distance = distances.get((made.channel, made.kind))
        sizes = {len(made.counts), len(made.reference), len(made.edges) + 3}
        if distance is None or len(sizes) > 1 or len(made.edges) < 2 or max(sizes) > CELLS:
            continue
        sides = sum(made.reference), sum(made.counts)
        cells = list(_cells(made, names.get(made.channel, ()), sides))
        largest = max((share for cell in cells for share in cell[2:]), default=0) or 1.0
        yield Histogram(distance, *sides, cells, largest)


def _cells(made: FeatureHistogram, names: Sequence[str], sides: tuple[int, int]) -> Iterator[Cell]:
    rows = zip(_labels(made, names), made.reference, made.counts, strict=True)
    for number, (name, theirs, own) in enumerate(rows):
        bounds = made.ordered and number <= len(made.edges)
        if theirs or own or bounds:
            yield Cell(name, bounds, theirs / max(sides[0], 1), own / max(sides[1], 1))


def _labels(made: FeatureHistogram, names: Sequence[str]) -> list[str]:
    """Return what the cells are: ranges, or the classes or categories with an index in them."""
    if made.ordered:
        texts = bounds_of(made.edges)
        inner = [f"{low} to {high}" for low, high in pairwise(texts)]
        return [f"below {texts[0]}", *inner, f"{texts[-1]} and more", "null", "not finite"]
    other, kind = ("no class", "class") if made.kind == "answer" else ("others", "index")

    def label(low: float, high: float) -> str:
        first, end = math.ceil(low), math.ceil(high)
        if end - first != 1:
            return other
        return names[first][:80] if first < len(names) else f"{kind} {first}"

    inner = [label(low, high) for low, high in pairwise((-0.5, *made.edges))]
    return [*inner, other, "null", "not finite"]


def bounds_of(edges: Sequence[float]) -> list[str]:
    """Return bounds as texts that differ: with two digits of the narrowest cell."""
    narrowest = min(abs(b - a) for a, b in pairwise(edges))
    places = 1 - math.floor(math.log10(narrowest)) if narrowest > 0 else 9
    largest = max(abs(edge) for edge in edges)
    if places > 6 or largest >= 1e9:
        return [f"{edge:.6g}" for edge in edges]
    return [f"{edge:,.{max(0, places)}f}" for edge in edges]
