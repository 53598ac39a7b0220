"""The console's pages: values of `pages`, `learning` and `device` in the templates' HTML."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import FastAPI, Query
from fastapi.responses import HTMLResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from compose.console import learning, pages
from compose.console.charts import colour, spark
from compose.console.device import device, trend
from compose.console.moment import Moment
from compose.console.watch import Watch
from compose.reports.dead_letters import place
from compose.reports.jobs import place_text, queue_row, read_jobs
from streams.contract.task import Task
from streams.fleet import wording
from streams.fleet.view import NO_AGENT

HERE = Path(__file__).parent
STATIC = HERE / "static"
JOBS = 100  # that are shown, the newest
PAGES = (
    ("/", "Overview"), ("/fleet", "Fleet"), ("/learning", "Learning"), ("/releases", "Releases"),
    ("/quality", "Data quality"), ("/jobs", "Batch jobs"),
)  # fmt: skip
SPANS = {"10 minutes": 600, "1 hour": pages.HOUR_S, "24 hours": pages.DAY_S}
DECISIONS = {
    "stage": "stage", "served": "served by all", "held": "paused", "rolled-back": "back",
    "candidate": "candidate", "dropped": "dropped", "teacher": "teacher", "keys": "keys",
}  # fmt: skip


@dataclass(frozen=True)
class Site:
    """command: makes the command that a page shows, of its name and arguments."""

    watch: Watch
    task: Task
    state: Path
    jobs: Sequence[Path]
    command: Callable[..., str]

    @cached_property
    def groups(self) -> dict[str, str]:
        """The groups that the task puts its devices in."""
        return {device.name: device.group for device in self.task.devices() if device.group}

    @cached_property
    def templates(self) -> Environment:
        made = Environment(
            loader=FileSystemLoader(HERE / "templates"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        made.filters |= {
            "amount": amount, "data": partial(json.dumps, separators=(",", ":")),
            "duration": wording.duration, "place": place, "share": wording.share,
            "short_runs": wording.short_runs, "spark": spark, "text": text,
        }  # fmt: skip
        made.globals |= {
            "NO_AGENT": NO_AGENT, "PAGES": PAGES, "SPANS": SPANS, "DECISIONS": DECISIONS,
            "before_after": wording.before_after, "colour": colour, "command": self.command,
            "counted": wording.counted, "descending": pages.DESCENDING, "place_text": place_text,
            "queue_row": queue_row, "score_of": pages.score_of, "task": self.task.name,
            "trend": trend, "url": url,
        }  # fmt: skip
        return made

    def show(
        self, name: str, title: str, make: Callable[[Moment], dict[str, Any] | None], **more: Any
    ) -> HTMLResponse:
        """Return the page of a template, of this moment; a status of 404 where `make` gives
        None."""

        def draw(moment: Moment) -> tuple[str, int]:
            found = make(moment)
            page = self.templates.get_template(f"{name}.html")
            about = {"here": f"/{name}".replace("/overview", "/"), "title": title, **more}
            html = page.render(link=moment.link, found=found is not None, **about, **(found or {}))
            return html, 200 if found is not None else 404

        return HTMLResponse(*self.watch.look(draw))


def text(value: bytes | None) -> str:
    return (value or b"").decode(errors="replace")


def amount(value: float) -> str:
    """Return a rate with three digits."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}" if value else "0"


def url(query: pages.FleetQuery, **changes: Any) -> str:
    """Return the address of the list with another query, from its first page."""
    asked = query.model_copy(update={"page": 1, **changes}).model_dump(exclude_defaults=True)
    return f"/fleet?{urlencode(asked)}"


def add_pages(app: FastAPI, site: Site) -> None:
    """Add all pages to the app."""
    get = partial(app.get, include_in_schema=False, response_class=HTMLResponse)

    @get("/")
    def overview(span: Annotated[int, Query(ge=60, le=pages.DAY_S)] = pages.HOUR_S) -> HTMLResponse:
        return site.show("overview", "Overview", lambda seen: pages.overview(seen, span))

    @get("/fleet")
    def fleet(query: Annotated[pages.FleetQuery, Query()]) -> HTMLResponse:
        return site.show("fleet", "Fleet", lambda seen: pages.fleet(seen, query, site.groups))

    @get("/devices/{name}")
    def one_device(name: str) -> HTMLResponse:
        return site.show("device", name, lambda seen: device(seen, name))

    @get("/learning")
    def all_runs() -> HTMLResponse:
        return site.show("learning", "Learning", learning.learning)

    @get("/releases")
    def all_releases() -> HTMLResponse:
        return site.show("releases", "Releases", learning.releases)

    @get("/quality")
    def quality(offset: int | None = None) -> HTMLResponse:
        return site.show(
            "quality", "Data quality", lambda seen: pages.quality(seen, site.task, offset)
        )

    @get("/jobs")
    def jobs() -> HTMLResponse:
        found, wrong = read_jobs(site.state, site.jobs, JOBS)
        return site.show("jobs", "Batch jobs", lambda _: {"jobs": found, "wrong": wrong})
