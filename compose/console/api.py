"""The JSON of the console: what the command of each path's name prints with --json."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

from fastapi import FastAPI, Query, Response
from pydantic_core import to_json

from compose.console.pages import letters_of
from compose.console.watch import Watch
from compose.reports import dead_letters, jobs, releases, rounds, status
from streams.fleet.timeline import Entry

ENTRIES = 2000
Route = TypeVar("Route", bound=Callable[..., Response])


def add_api(app: FastAPI, watch: Watch, state: Path, folders: Sequence[Path]) -> None:
    """Add the routes; folders: of batch jobs, beside those that the state folder knows."""

    def get(path: str, kind: Any) -> Callable[[Route], Route]:
        return app.get(f"/api/{path}", responses={200: {"model": kind}}, response_class=Response)

    def json(found: Any) -> Response:
        return Response(to_json(found), media_type="application/json")

    @get("status", status.StatusReport)
    def get_status() -> Response:
        """`tidewheel status --json`"""
        return json(watch.look(lambda seen: status.report_of(seen.status)))

    @get("rounds", rounds.RunsReport)
    def get_rounds() -> Response:
        """`tidewheel rounds --json`, of the runs that the topic still has"""
        return json(watch.look(lambda seen: rounds.report_of(seen.view.task, seen.view.rounds)))

    @get("releases", releases.DecisionsReport)
    def get_releases() -> Response:
        """`tidewheel releases --json`"""
        return json(watch.look(lambda seen: releases.report_of(seen.view.task, seen.view.decided)))

    @get("timeline", list[Entry])
    def get_timeline(last: Annotated[int, Query(ge=1, le=ENTRIES)] = 200) -> Response:
        """The newest lines of `tidewheel timeline --json`, oldest first"""
        return json(watch.look(lambda seen: seen.view.timeline.entries[-last:]))

    @get("jobs", list[jobs.JobRow])
    def get_jobs() -> Response:
        """`tidewheel jobs list --json`"""
        return json(jobs.list_jobs(state, folders)[0])

    @get("dead-letters", list[dead_letters.LetterReport])
    def get_letters() -> Response:
        """`tidewheel dead-letters list --json`, of the newest"""
        return json(watch.look(lambda seen: dead_letters.reports_of(letters_of(seen))))

    @app.get("/live", include_in_schema=False)
    def live() -> Response:
        return Response("alive\n", media_type="text/plain")

    @app.get("/ready", include_in_schema=False)
    def ready() -> Response:
        text = "ready\n" if watch.ready else "the topics' past is not read yet\n"
        return Response(text, 200 if watch.ready else 503, media_type="text/plain")
