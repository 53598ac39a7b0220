"""What pages are made of: texts, times, versions, tables, charts. Each changes in place, and only
where what it shows has changed."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, TypeVar

from nicegui import ui
from nicegui.element import Element
from nicegui.elements.mixins.text_element import TextElement

from streams.fleet.view import model_number

T = TypeVar("T")

# Okabe and Ito (2008): told apart by people with any kind of colour vision.
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#8C7A3F")
NO_VERSION = "#8a929b"
GREY = "rgba(128,128,128,.28)"

EMPTY = "Nothing yet: a line begins a minute after the first windows are reported."

CELLS = {
    "device": '<a :href="`/devices/${encodeURIComponent(props.value)}`">{{ props.value }}</a>',
    "version": '<span class="version"><i :style="{background: props.row.colour}"></i>'
    "{{ props.value || '-' }}</span>",
    "condition": '<span class="is" :class="`is-${props.value}`">{{ props.value }}</span>',
    "trend": '<svg class="spark" viewBox="0 0 70 20" aria-hidden="true"><polyline '
    ':points="props.value"></polyline></svg>',
    "ago": '<tw-time :at="props.value" mode="ago"></tw-time>',
    "time": '<tw-time :at="props.value" mode="time"></tw-time>',
}


def colour(version: str) -> str:
    """Return a version's colour, the same on every page."""
    number = model_number(version)
    return NO_VERSION if number < 0 else PALETTE[(number - 1) % len(PALETTE)]


def spark(values: Sequence[float]) -> str:
    """Return values as the points of a line, 70 wide and 20 high."""
    low, high = min(values, default=0.0), max(values, default=1.0)
    low, high = (low - 0.05, high + 0.05) if high - low < 0.1 else (low, high)
    wide = 68 / max(1, len(values) - 1)
    return " ".join(
        f"{1 + n * wide:.1f},{19 - 18 * (value - low) / (high - low):.1f}"
        for n, value in enumerate(values)
    )


def el(tag: str, classes: str = "", text: str = "") -> Element:
    """Return an element; its text is never read as HTML."""
    made = TextElement(tag=tag, text=text) if text else ui.element(tag)
    return made.classes(classes)


def link(text: str, target: str, classes: str = "") -> Element:
    return ui.link(text, target).classes(classes)


def when(at_us: int | None, mode: str = "time") -> Element:
    """A local time, with UTC on hover; mode "ago" counts by itself."""
    return ui.element("tw-time").props(f'at={at_us or 0} mode="{mode}"')


def version(name: str | None) -> Element:
    """A version with its colour."""
    with ui.element("span").classes("version") as made:
        ui.element("i").style(f"background: {colour(name or '')}")
        el("span", text=name or "no version")
    return made


def card(title: str, classes: str = "") -> Element:
    """A card with a heading; used by `with`."""
    made = ui.element("section").classes(f"card {classes}")
    with made:
        el("h2", text=title)
    return made


def copyable(does: str, command: str) -> None:
    """What a command does, and the command: one click selects it."""
    with ui.element("div").classes("row-of small"):
        el("span", "muted", does)
        el("code", "copyable", command)


def facts(pairs: Mapping[str, str]) -> None:
    """Names and values, side by side."""
    with ui.element("div").classes("facts"):
        for name, value in pairs.items():
            ui.label(name)
            ui.label(value)


def chip(text: str, here: bool, act: Callable[[], object]) -> Element:
    """A button that is one of several choices; used by `with` where its text is not all."""
    made = el("button", "plain-button" + (" here" if here else ""), text)
    return made.props(f"type=button aria-pressed={str(here).lower()}").on("click", act)


def metric_title(metric: str, lower_is_better: bool) -> str:
    """Return a heading for what a chart shows."""
    better = "lower" if lower_is_better else "higher"
    return f"{metric[:1].upper()}{metric[1:]} ({better} is better)"


class Text:
    """A text that changes in place."""

    def __init__(self, classes: str = "") -> None:
        self._label = ui.label("").classes(classes)

    def show(self, text: str) -> None:
        self._label.set_text(text)


class Drawn(Generic[T]):
    """A part that is drawn again when what it shows has changed, and left alone otherwise."""

    def __init__(self, draw: Callable[[T], object], classes: str = "", tag: str = "div") -> None:
        self._box = ui.element(tag).classes(classes)
        self._draw = draw
        self._shown: object = self

    def show(self, what: T) -> None:
        if what != self._shown:
            self._shown = what
            self._box.clear()
            with self._box:
                self._draw(what)


class Rows:
    """A table whose rows change in place; columns: name, heading, kind of cell."""

    def __init__(
        self, columns: Sequence[tuple[str, str, str]], key: str, empty: str, label: str
    ) -> None:
        made = [
            {
                "name": name,
                "label": heading,
                "field": name,
                "align": "right" if kind == "number" else "left",
                "classes": "wrap" if kind == "wrap" else "",
            }
            for name, heading, kind in columns
        ]
        self.table = ui.table(rows=[], columns=made, row_key=key)
        self.table.props(f'flat dense aria-label="{label}" hide-bottom')
        for name, _, kind in columns:
            if kind in CELLS:
                cell = f'<q-td :props="props">{CELLS[kind]}</q-td>'
                self.table.add_slot(f"body-cell-{name}", cell)
        self._empty = el("div", "empty", empty)
        self._shown: list[dict[str, Any]] | None = None

    def head(self, **headings: str) -> None:
        """Rename columns, where they are called otherwise."""
        for column in self.table.columns:
            if column["label"] != (heading := headings.get(column["name"], column["label"])):
                column["label"] = heading
                self.table.update()

    def show(self, rows: list[dict[str, Any]]) -> None:
        if rows != self._shown:
            self._shown = rows
            self.table.rows = rows
            self.table.set_visibility(bool(rows))
            self._empty.set_visibility(not rows)


class Lines:
    """A chart of lines over time; series: by name, colour and points (ms, value)."""

    def __init__(self, label: str, *, rates: bool = False) -> None:
        self._chart = ui.echart(_options(), renderer="svg").classes("chart")
        self._chart.props(f'role=img aria-label="{label}"')
        self._shown: object = None
        self._empty = el("div", "empty", EMPTY)
        if rates:
            self._chart.options["yAxis"] |= {"min": 0, "scale": False}

    def logarithmic(self, least: float, most: float) -> None:
        """Draw values on a scale of powers of ten."""
        self._chart.options["yAxis"] |= {"type": "log", "min": least, "max": most}

    def show(
        self, series: Mapping[str, tuple[str, list[list[float | None]]]], *, shares: bool = False
    ) -> None:
        """shares: the values are, so the axis ends at 1."""
        if series == self._shown:
            return
        self._shown = series
        dashes = ("solid", "dashed", "dotted")
        self._chart.options["series"] = [
            {
                "name": name,
                "type": "line",
                "showSymbol": len(points) < 12,
                "symbolSize": 5,
                "data": points,
                "color": line,
                "lineStyle": {"width": 2, "type": dashes[n % len(dashes)]},
                "connectNulls": False,
                "animation": False,
            }
            for n, (name, (line, points)) in enumerate(series.items())
        ]
        values = [v for _, points in series.values() for _, v in points if v is not None]
        self._chart.set_visibility(bool(values))
        self._empty.set_visibility(not values)
        if shares and values:
            self._chart.options["yAxis"] |= share_axis(values)
        self._chart.update()


def share_axis(values: Sequence[float]) -> dict[str, Any]:
    """Return the options of an axis of shares: it ends at 1, and its numbers have two digits."""
    low = max(0.0, math.floor(10 * min(values) - 0.2) / 10)
    return {"max": 1, "min": low, "axisLabel": {":formatter": "value => value.toFixed(2)"}}


def _options() -> dict[str, Any]:
    return {
        "animation": False,
        "grid": {"left": 46, "right": 14, "top": 34, "bottom": 26},
        "legend": {"type": "scroll", "top": 0, "left": 0, "itemHeight": 9},
        "tooltip": {"trigger": "axis", "renderMode": "richText"},
        "xAxis": {
            "type": "time",
            "axisLine": {"lineStyle": {"color": GREY}},
            "axisLabel": {"hideOverlap": True},
        },
        "yAxis": {
            "type": "value",
            "scale": True,
            "splitLine": {"lineStyle": {"color": GREY}},
            "splitNumber": 4,
        },
        "series": [],
    }
