"""The first page: what is wrong, the loop as a picture with its rates, and its last hour."""

from collections.abc import Sequence

from fastapi import Request
from nicegui import ui

from compose.dashboard.model.overview import Overview, Point, Stations, overview
from compose.dashboard.model.problems import Problem
from compose.dashboard.pages.parts import (
    PALETTE,
    Drawn,
    Lines,
    Text,
    card,
    colour,
    el,
    link,
    metric_title,
    version,
    when,
)
from compose.dashboard.pages.site import Frame, Site
from streams.fleet.timeline import Entry

SIGNS = {"critical": "■", "warning": "▲", "note": "●"}
FINE = "No problems found. A device that has never reported is not known here."


def add(site: Site) -> None:
    @ui.page("/")
    def page(request: Request) -> None:
        frame = Frame(site, request, "/", "Overview")
        with frame.content:
            el("h1", text="Overview")
            with card("What is wrong"):
                wrong = Drawn(draw_problems)
            with card("The loop"):
                loop = _Loop()
            with ui.element("div").classes("two"):
                with card("Events a second"):
                    events = Lines("Events a second over the last hour", rates=True)
                with ui.element("section").classes("card"):
                    title = Text("card-title")
                    values = Lines("What windows tell of each version")
            with card("What happened last"):
                happened = Drawn(draw_happenings)

        def show(found: Overview) -> None:
            wrong.show(found.problems)
            loop.show(found.stations)
            events.show(_rates(found.history))
            title.show(f"{metric_title(found.metric, found.lower_is_better)}, by version")
            values.show(_values(found.history), shares=not found.lower_is_better)
            happened.show(found.happenings)

        frame.live(overview, show)


class _Loop:
    """The picture: devices, workers, learning, releases, and back to the devices."""

    def __init__(self) -> None:
        with ui.element("div").classes("loop"):
            self._devices = _Station("Devices", "/fleet")
            self._in = _Arrow("events/s")
            self._workers = _Station("Workers", "/quality")
            self._windows = _Arrow("windows/s")
            self._learning = _Station("Learning", "/learning")
            self._updates = _Arrow("passed the gate")
            self._releases = _Station("Releases", "/releases")
        self._back = Drawn(_draw_serving, "back")

    def show(self, here: Stations) -> None:
        total = sum(here.devices.values())
        counts = [f"{count} {name}" for name, count in here.devices.items() if count]
        self._devices.show(f"{total:,}", ", ".join(counts) or "no device has reported",
                           f"{here.pending:,} events pending")  # fmt: skip
        self._in.show(_rate(here.produced_per_s))
        lag = "no worker yet" if here.lag is None else f"lag {here.lag:,} messages"
        self._workers.show(f"{here.windows:,}", "windows closed", lag)
        self._windows.show(_rate(here.windows_per_s))
        self._learning.show("run" if here.run else "idle", here.run or "no run is under way")
        self._updates.show(f"{here.passed:,} of {here.judged:,}" if here.judged else "-")
        self._releases.show("rollout" if here.rollout else "settled", here.rollout or here.released)
        self._back.show(here.serving)


class _Station:
    def __init__(self, name: str, target: str) -> None:
        with link("", target, "station"):
            ui.label(name).classes("what")
            self._figure = Text("figure")
            self._words, self._more = Text("words"), Text("words")

    def show(self, figure: str, words: str, more: str = "") -> None:
        self._figure.show(figure)
        self._words.show(words)
        self._more.show(more)


class _Arrow:
    def __init__(self, unit: str) -> None:
        with ui.element("div").classes("arrow"):
            self._rate = Text("rate")
            el("div", "line").props("aria-hidden=true")
            ui.label(unit).classes("unit")

    def show(self, rate: str) -> None:
        self._rate.show(rate)


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}" if value else "0"


def _draw_serving(serving: dict[str, int]) -> None:
    el("span", "muted", "devices serve" if serving else "no device serves a model yet")
    for name, count in serving.items():
        with ui.element("span").classes("row-of"):
            version(name)
            el("span", "muted", f"on {count:,}")


def draw_problems(found: Sequence[Problem]) -> None:
    if not found:
        with ui.element("div").classes("problem fine"):
            el("span", "sign", "✓")
            ui.label(FINE)
    for problem in found:
        with ui.element("div").classes(f"problem {problem.severity}"):
            el("span", "sign", SIGNS[problem.severity]).props(f'title="{problem.severity}"')
            if problem.page == "/":
                ui.label(problem.text)
            else:
                link(problem.text, problem.page)
            with ui.element("span").classes("small muted"):
                if problem.since_us:
                    when(problem.since_us, "ago")
            if problem.advice:
                ui.label(problem.advice).classes("advice")


def draw_happenings(found: Sequence[Entry]) -> None:
    if not found:
        text = "Nothing yet: runs, decisions, drift and devices that go back appear here."
        el("div", "empty", text)
    for entry in found:
        with ui.element("div").classes("happening"):
            when(entry.time_us)
            ui.label(entry.text + (f": {entry.reason}" if entry.reason else ""))


Series = dict[str, tuple[str, list[list[float | None]]]]


def _rates(history: Sequence[Point]) -> Series:
    return {
        "produced": (PALETTE[5], [[p.at_us / 1000, p.produced_per_s] for p in history]),
        "scored": (PALETTE[0], [[p.at_us / 1000, p.scored_per_s] for p in history]),
    }


def _values(history: Sequence[Point]) -> Series:
    names = sorted({name for point in history for name in point.value})
    return {
        name: (colour(name), [[p.at_us / 1000, p.value.get(name)] for p in history])
        for name in names
    }
