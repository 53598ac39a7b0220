"""Releases: what devices are to serve, how a canary does, and all decisions as a time line."""

from typing import Any

from fastapi import Request
from nicegui import ui

from compose.dashboard.model.lineage import Lineage
from compose.dashboard.model.rollouts import DecisionRow, Releases, releases
from compose.dashboard.pages.parts import (
    NO_VERSION,
    PALETTE,
    Drawn,
    Lines,
    Rows,
    Text,
    card,
    colour,
    copyable,
    el,
    facts,
    metric_title,
    version,
    when,
)
from compose.dashboard.pages.site import Frame, Site
from streams.contract.decisions import Pause
from streams.fleet.wording import counted, short_runs

EMPTY = "No decision yet. tidewheel prepare makes the first version, a controller announces it."
LEAST, MOST = 1e-3, 1e3  # of odds that are drawn
LINEAGE = (
    ("version", "version", "version"), ("base", "made from", "text"), ("run", "run", "text"),
    ("rounds", "rounds", "number"), ("devices", "devices that trained", "number"),
    ("samples", "samples", "number"), ("reason", "accepted because", "wrap"),
    ("key", "signed by key", "text"), ("at_us", "when", "time"),
)  # fmt: skip
NO_CANARY = "No version is offered to a part of the fleet now."


def add(site: Site) -> None:
    @ui.page("/releases")
    def page(request: Request) -> None:
        frame = Frame(site, request, "/releases", "Releases")

        def draw_commands(what: tuple[bool, bool, str | None]) -> None:
            _draw_commands(site, *what)

        with frame.content:
            el("h1", text="Releases")
            with ui.element("div").classes("two"):
                with card("What devices are to serve"):
                    desired = Drawn(_draw_desired)
                    el("h2", text="Change it").style("margin-top: 12px")
                    commands = Drawn(draw_commands)
                with card("Canary against the others, since its first stage") as compared:
                    canary = _Canary()
            with card("Evidence about the canary, against its bounds") as evidence:
                odds = _Evidence()
            with card("Lineage") as made:
                lineage = Rows(LINEAGE, "version", EMPTY, "Versions and how they were made")
            with card("Decisions"):
                decisions = Drawn(_draw_decisions)

        def show(found: Releases) -> None:
            here = found.desired
            rows = (row for row in found.decisions if row.kind != "teacher")
            newest = next((row.version for row in rows if row.version), None)
            commands.show((here.offered is not None, here.paused is not None, newest))
            desired.show(found)
            canary.show(found)
            compared.set_visibility(bool(found.canary))
            evidence.set_visibility(bool(found.canary))
            made.set_visibility(bool(found.versions))
            lineage.show([_lineage(version) for version in found.versions])
            odds.show(found)
            decisions.show(found.decisions)

        frame.live(releases, show)


def _lineage(made: Lineage) -> dict[str, Any]:
    """A row; what the topics no longer have is a dash."""
    counts = ("rounds", "devices", "samples")
    figures = {name: f"{n:,}" if (n := getattr(made, name)) else "-" for name in counts}
    run = short_runs(made.run) or "none"
    about = {"run": run, "base": made.base or "-", "colour": colour(made.version)}
    return {**made.model_dump(), **figures, **about}


def _draw_commands(site: Site, offered: bool, paused: bool, newest: str | None) -> None:
    """Commands of what a person may do now; each shows what would change, and asks."""
    copyable("Go back to the version before:", site.command("models rollback"))
    if paused:
        copyable("Resume the rollout:", site.command("models resume"))
    elif offered:
        copyable("Pause the rollout:", site.command("models pause"))
    copyable("Serve a version on all devices:", site.command("models promote", newest or "MODEL"))


def _draw_paused(paused: Pause) -> None:
    with ui.element("div").classes("problem warning").style("margin-top: 8px"):
        el("span", "sign", "▲")
        ui.label("A person has paused the rollout. The version still goes back if it is worse.")
        with ui.element("span").classes("small muted"):
            when(paused.time_us, "ago")
        ui.label(f"{paused.reason}, signed by key {paused.key}").classes("advice")


def _draw_desired(found: Releases) -> None:
    here = found.desired
    text = found.released
    ui.label(f"{text[:1].upper()}{text[1:]}.")
    if here.paused is not None:
        _draw_paused(here.paused)
    rest = found.devices - found.offered_devices
    parts = [] if here.stable is None else [(here.stable, rest)]
    if here.offered is not None:
        parts.append((here.offered, found.offered_devices))
    if parts:
        with ui.element("div").classes("strip").style("margin: 10px 0"):
            for ref, count in parts:
                ui.element("div").style(f"flex: {count}; background: {colour(ref.model)}")
    for ref, count in parts:
        with ui.element("div").classes("row-of"):
            version(ref.model)
            el("span", "muted", f"on {count:,} of {counted(found.devices, 'device')}")
    if found.canary and found.stable:
        words = f"tidewheel models diff TASK {found.stable} {found.canary}"
        facts({"what changed": f"{words} compares manifests, metrics and tensors"})
    if here.withdrawn:
        facts({f"withdrawn {model}": why for model, why in here.withdrawn.items()})
    if found.teacher:
        facts({"teacher": found.teacher})


class _Canary:
    def __init__(self) -> None:
        self._none = el("div", "empty", NO_CANARY)
        self._box = ui.element("div")
        with self._box:
            self._title = Text("muted small")
            self._chart = Lines("What windows tell of the canary and of the others")

    def show(self, found: Releases) -> None:
        self._none.set_visibility(not found.growth)
        self._box.set_visibility(bool(found.growth))
        points = [(g.at_us / 1000, g.canary, g.others) for g in found.growth]
        if found.canary and points:
            series = {
                f"canary {found.canary}": (colour(found.canary), [[t, c] for t, c, _ in points])
            }
            if found.stable:
                name = f"others {found.stable}"
                series[name] = colour(found.stable), [[t, o] for t, _, o in points]
            self._title.show(metric_title(found.metric, found.lower_is_better))
            self._chart.show(series, shares=not found.lower_is_better)


class _Evidence:
    """The odds on a scale of powers of ten, and the bound that ends the stage."""

    def __init__(self) -> None:
        self._words = Text()
        self._chart = Lines("Odds that the canary is worse, and that it is not", rates=True)
        self._chart.logarithmic(LEAST, MOST)

    def show(self, found: Releases) -> None:
        self._words.show(found.words[:1].upper() + found.words[1:])
        worse = _line([(point.at_us, point.worse) for point in found.odds])
        fine = _line([(point.at_us, point.fine) for point in found.odds])
        series = {"worse": (PALETTE[4], worse), "not worse": (PALETTE[2], fine)}
        bounds = {found.bound_worse: "goes back", found.bound_fine: "goes on"}
        if len(bounds) == 1:
            bounds = {found.bound_worse: "goes back, or on"}
        for bound, end in bounds.items():
            line = _line([(point.at_us, bound) for point in found.odds])
            series[f"bound: it {end} at {bound:.3g} to 1"] = NO_VERSION, line
        self._chart.show(series if found.odds else {})


def _line(points: list[tuple[int, float]]) -> list[list[float | None]]:
    return [[at_us / 1000, min(max(value, LEAST), MOST)] for at_us, value in points]


def _draw_decisions(found: list[DecisionRow]) -> None:
    if not found:
        el("div", "empty", EMPTY)
    for row in found:
        shade = colour(row.version) if row.version else NO_VERSION
        with ui.element("div").classes("step").style(f"--v: {shade}"):
            with ui.element("div").classes("row-of"):
                el("b", text=row.text)
                bad = row.kind in ("rolled-back", "dropped", "held")
                good = row.kind == "served"
                el("span", "tag bad" if bad else "tag good" if good else "tag", row.word)
                with ui.element("span").classes("muted small"):
                    when(row.at_us)
            ui.label(row.reason)
            about = f"decision {row.seq}, signed by key {row.key}"
            about += short_runs(f", run {row.run}") if row.run else ""
            el("div", "muted small", about)
            if row.odds_worse is not None and row.bound_worse is not None:
                _odds("odds that it is worse", row.odds_worse, row.bound_worse, "back")
            if row.odds_fine is not None and row.bound_fine is not None:
                _odds("odds that it is not", row.odds_fine, row.bound_fine, "on")


def _odds(name: str, odds: float, bound: float, end: str) -> None:
    with ui.element("div").classes("row-of small muted"):
        with ui.element("div").classes("meter").style("width: 160px"):
            ui.element("div").style(f"width: {min(100.0, 100 * odds / bound):.0f}%")
        shown = f"{odds:,.0f}" if odds >= 100 else f"{odds:.2g}"
        el("span", text=f"{name} {shown} to 1; it goes {end} at {bound:.3g} to 1")
