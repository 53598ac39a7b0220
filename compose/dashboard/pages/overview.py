"""The first page: what is wrong, the loop as a picture with its rates, and its last hour."""

from collections.abc import Sequence
from functools import partial

from fastapi import Request
from nicegui import run, ui

from compose.dashboard.model.observed import Observed
from compose.dashboard.model.overview import (
    DAY_S,
    HOUR_S,
    Overview,
    Point,
    Stations,
    overview,
)
from compose.dashboard.model.problems import Problem
from compose.dashboard.pages.parts import (
    PALETTE,
    Drawn,
    Lines,
    Rows,
    Text,
    card,
    chip,
    colour,
    el,
    link,
    metric_title,
    version,
    when,
)
from compose.dashboard.pages.site import Frame, Site
from compose.dashboard.processes import ProcessUse
from streams.fleet.timeline import Entry

SIGNS = {"critical": "■", "warning": "▲", "note": "●"}
FINE = "No problems found. A device that has never reported is not known here."
SPANS = {"10 minutes": 600, "1 hour": HOUR_S, "24 hours": DAY_S}
PROCESSES = (
    ("name", "process", "text"), ("cpu", "CPU of a core", "number"), ("memory", "memory", "number")
)  # fmt: skip
MEASURE_S = 5.0


def add(site: Site) -> None:
    @ui.page("/")
    def page(request: Request) -> None:
        frame, span = Frame(site, request, "/", "Overview"), [HOUR_S]

        def draw_spans(chosen: int) -> None:
            el("span", "muted small", "charts of the last")
            for name, seconds in SPANS.items():
                chip(name, seconds == chosen, partial(choose, seconds))

        with frame.content:
            with ui.element("div").classes("row-of"):
                el("h1", text="Overview")
                spans = Drawn(draw_spans, "row-of")
            with card("What is wrong"):
                wrong = Drawn(draw_problems)
            with card("The loop"):
                loop = _Loop()
            with ui.element("div").classes("two"):
                with card("Events a second"):
                    events = Lines("Events a second", rates=True)
                with ui.element("section").classes("card"):
                    title = Text("card-title")
                    values = Lines("What windows tell of each version")
            with card("What happened last"):
                happened = Drawn(draw_happenings)
            with card("Processes of this machine") as machine:
                processes = Rows(PROCESSES, "name", "", "Processes")
                note = "Of tidewheel up, each with its children; shared memory counts in each."
                el("div", "muted small", note)
            machine.set_visibility(False)  # tidewheel up may run elsewhere, or not at all

        def choose(seconds: int) -> None:
            span[0] = seconds
            show(site.watch.look(look))

        def look(seen: Observed) -> Overview:
            return overview(seen, span[0])

        def show(found: Overview) -> None:
            spans.show(span[0])
            wrong.show(found.problems)
            loop.show(found.stations)
            events.show(_rates(found.history))
            title.show(f"{metric_title(found.metric, found.lower_is_better)}, by version")
            values.show(_values(found.history), shares=not found.lower_is_better)
            happened.show(found.happenings)

        async def measure() -> None:
            found = await run.io_bound(site.usage.read) or []
            processes.show([_process(use) for use in found])
            machine.set_visibility(bool(found))

        frame.live(look, show)
        with frame.content:
            ui.timer(MEASURE_S, measure)


def _process(use: ProcessUse) -> dict[str, str]:
    cpu = "-" if use.cpu is None else f"{100 * use.cpu:.0f}%"
    return {"name": use.name, "cpu": cpu, "memory": f"{use.memory_bytes / 1e6:,.0f} MB"}


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
