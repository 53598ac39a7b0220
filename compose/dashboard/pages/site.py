"""The console's pages as a site: what they need, their frame, and how they are kept live."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from fastapi import Request
from nicegui import ui

from compose.dashboard.model.observed import Observed
from compose.dashboard.pages.parts import Drawn, el, link, when
from compose.dashboard.processes import ProcessUsage
from compose.dashboard.watch import Watch
from compose.reports.jobs import FoundJobs
from streams.contract.task import Task

T = TypeVar("T")

STATIC = Path(__file__).parent / "static"
EVERY_S = 1.0
PAGES = (
    ("/", "Overview"), ("/fleet", "Fleet"), ("/learning", "Learning"), ("/releases", "Releases"),
    ("/quality", "Data quality"), ("/jobs", "Batch jobs"),
)  # fmt: skip
HEAD = (
    '<link rel="stylesheet" href="/static/console.css">'
    '<script src="/static/console.js" defer></script>'
)
NEXT_THEME = {"auto": "dark", "dark": "light", "light": "auto"}


@dataclass(frozen=True)
class Site:
    """command: makes the command that a page shows, of its name and arguments."""

    watch: Watch
    task: Task
    jobs: Callable[[], FoundJobs]
    command: Callable[..., str]
    usage: ProcessUsage


class Frame:
    """The frame of one page in one browser: bar, outage, and the page's own parts, which `live`
    keeps up to date."""

    def __init__(self, site: Site, request: Request, here: str, title: str) -> None:
        self.site = site
        ui.page_title(f"{title} - {site.task.name} - Tidewheel")
        theme = request.cookies.get("tidewheel-theme", "auto")
        self._dark = ui.dark_mode({"dark": True, "light": False}.get(theme))
        link("Skip to the content", "#content", "skip")
        with ui.element("header").classes("bar"), ui.element("div").classes("bar-in"):
            with el("div", "brand", "Tidewheel"):
                el("small", text=site.task.name)
            with ui.element("nav").classes("nav").props('aria-label="Pages"'):
                for target, name in PAGES:
                    found = link(name, target, "here" if target == here else "")
                    if target == here:
                        found.props("aria-current=page")
            self._side(theme)
        self._away = Drawn(_draw_away, "away", "div")
        self._away._box.props("role=status")
        self.content = ui.element("main").classes("page").props("id=content")

    def _side(self, theme: str) -> None:
        with ui.element("div").classes("side"):
            self._theme = theme if theme in NEXT_THEME else "auto"
            self._button = ui.element("button").classes("plain-button")
            self._button.props('type=button aria-label="Colours: automatic, dark or light"')
            with self._button:
                self._name = ui.label(f"Colours: {self._theme}")
            self._button.on("click", self._turn)

    def _turn(self) -> None:
        self._theme = NEXT_THEME[self._theme]
        self._dark.value = {"dark": True, "light": False}.get(self._theme)
        self._name.set_text(f"Colours: {self._theme}")
        ui.run_javascript(
            f"document.cookie = 'tidewheel-theme={self._theme}; path=/; max-age=31536000; "
            "samesite=strict'"
        )

    def live(self, make: Callable[[Observed], T], show: Callable[[T], object]) -> None:
        """Show what `make` makes, now and every EVERY_S."""

        def refresh() -> None:
            link, found = self.site.watch.look(lambda seen: (seen.link, make(seen)))
            at_us = int(link.since_s * 1e6) if link.why and link.since_s else None
            self._away.show((link.trouble, link.why, at_us))
            self._away._box.set_visibility(bool(link.trouble))
            show(found)

        with self.content:
            refresh()
            ui.timer(EVERY_S, refresh, immediate=False)


def _draw_away(what: tuple[str, str, int | None]) -> None:
    text, why, at_us = what
    with ui.element("div"):
        el("b", text=f"{text}. ")
        if at_us is not None:
            el("span", text="Everything here is of ")
            when(at_us)
            el("span", text=". ")
        el("span", text="Reconnecting automatically." + (f" ({why})" if why else ""))
