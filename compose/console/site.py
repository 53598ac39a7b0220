"""The console's routes: values of `pages`, `learning` and `device` in HTML templates, and JSON."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, Any, TypeVar
from urllib.parse import urlencode

import msgspec
from fastapi import FastAPI, Query, Response
from fastapi.responses import HTMLResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from compose.console import learning, pages
from compose.console.device import device, trend
from compose.console.pages import colour, spark
from compose.console.watch import Moment, Watch
from compose.reports import dead_letters, jobs, status
from streams.contract.documents import encoded
from streams.contract.task import Task
from streams.fleet import wording
from streams.fleet.timeline import ENTRIES, Entry
from streams.fleet.view import NO_AGENT

Route = TypeVar("Route", bound=Callable[..., Response])
HERE = Path(__file__).parent
STATIC = HERE / "static"
SCHEMA = "#/components/schemas/{name}"
JOBS = 100  # that are shown, the newest
PAGES = (
    ("/", "Overview"), ("/fleet", "Fleet"), ("/learning", "Learning"), ("/releases", "Releases"),
    ("/quality", "Data quality"), ("/jobs", "Batch jobs"),
    ("/api/openapi.json", "JSON"),
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
            "duration": wording.duration, "place": dead_letters.place, "share": wording.share,
            "short_runs": wording.short_runs, "spark": spark, "text": text,
        }  # fmt: skip
        made.globals |= {
            "NO_AGENT": NO_AGENT, "PAGES": PAGES, "SPANS": SPANS, "DECISIONS": DECISIONS,
            "before_after": wording.before_after, "colour": colour, "command": self.command,
            "counted": wording.counted, "descending": pages.DESCENDING,
            "score_of": pages.score_of,
            "task": self.task.name, "trend": trend, "url": url,
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
    def all_jobs() -> HTMLResponse:
        found, wrong = jobs.read_jobs(site.state, JOBS)
        return site.show("jobs", "Batch jobs", lambda _: {"jobs": found, "wrong": wrong})


def add_api(app: FastAPI, site: Site) -> None:
    """Add the JSON: what the command of each path's name prints with --json."""
    watch = site.watch
    schemas: dict[str, Any] = {}

    def get(path: str, kind: Any) -> Callable[[Route], Route]:
        (schema,), parts = msgspec.json.schema_components([kind], ref_template=SCHEMA)
        schemas.update(parts)
        answer: dict[str, Any] = {"content": {"application/json": {"schema": schema}}}
        return app.get(f"/api/{path}", responses={200: answer}, response_class=Response)

    def json(found: Any) -> Response:
        return Response(encoded(found), media_type="application/json")

    @get("status", status.StatusReport)
    def get_status() -> Response:
        """`tidewheel status --json`"""
        return json(watch.look(lambda seen: status.report_of(seen.status)))

    @get("rounds", learning.RunsReport)
    def get_rounds() -> Response:
        """The federated runs that the topic still has: rounds, nodes, updates, figures, outcome"""
        return json(watch.look(lambda seen: learning.report_of(seen.view.task, seen.view.rounds)))

    @get("timeline", list[Entry])
    def get_timeline(last: Annotated[int, Query(ge=1, le=ENTRIES)] = 200) -> Response:
        """The newest lines of `tidewheel timeline --json`, oldest first"""
        return json(watch.look(lambda seen: seen.view.timeline.entries[-last:]))

    @get("jobs", list[jobs.JobRow])
    def get_jobs() -> Response:
        """`tidewheel jobs list --json`"""
        return json(jobs.read_jobs(site.state)[0][::-1])

    @get("dead-letters", list[dead_letters.LetterReport])
    def get_letters() -> Response:
        """`tidewheel dead-letters --json`, of the newest"""
        return json(watch.look(lambda seen: dead_letters.reports_of(pages.letters_of(seen))))

    plain = app.openapi

    def openapi() -> dict[str, Any]:
        """Return the page of the JSON with the schemas of our documents, which FastAPI lacks."""
        found = plain()
        found.setdefault("components", {}).setdefault("schemas", {}).update(schemas)
        return found

    app.openapi = openapi  # type: ignore[method-assign]

    @app.get("/live", include_in_schema=False)
    def live() -> Response:
        return Response("alive\n", media_type="text/plain")

    @app.get("/ready", include_in_schema=False)
    def ready() -> Response:
        text = "ready\n" if watch.ready else "the topics' past is not read yet\n"
        return Response(text, 200 if watch.ready else 503, media_type="text/plain")
