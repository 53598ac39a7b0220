"""The JSON API, read only. Its documents are those of `compose.dashboard.model` and of the command
line's reports; GET /api/openapi.json describes them."""

from collections.abc import Callable, Mapping
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, HTTPException, Query, Response
from pydantic import BaseModel
from pydantic_core import to_json

from compose.dashboard.model.device import DevicePage, device_page
from compose.dashboard.model.fleet import FleetPage, FleetQuery, fleet_page, groups_of
from compose.dashboard.model.learning import Learning, learning
from compose.dashboard.model.letters import LetterDetail, Quality, letter_detail, quality
from compose.dashboard.model.overview import DAY_S, HOUR_S, Overview, overview
from compose.dashboard.model.rollouts import Releases, releases
from compose.dashboard.processes import ProcessUsage, ProcessUse
from compose.dashboard.watch import Watch
from compose.reports import rounds, status
from compose.reports.documents import DecisionsReport, JobsReport, RunsReport, StatusReport
from compose.reports.jobs import FoundJobs, queue_row
from federation.registry.catalog import describe_decision
from streams.contract.task import Task
from streams.fleet.timeline import Entry

TITLE = "Tidewheel console"
ENTRIES = 2000


def make_app(title: str) -> FastAPI:
    """Return an app without the library's pages of documentation, which load scripts from
    elsewhere."""
    return FastAPI(title=title, openapi_url="/api/openapi.json", docs_url=None, redoc_url=None)


def described(kind: Any) -> dict[int | str, dict[str, Any]]:
    return {200: {"model": kind}}


def as_json(found: Any) -> Response:
    return Response(to_json(found), media_type="application/json")


def api(watch: Watch, task: Task, jobs: Callable[[], FoundJobs], usage: ProcessUsage) -> APIRouter:
    """Return the routes; jobs: reads those of batch scoring; usage: measures processes."""
    router = APIRouter(default_response_class=Response)
    pages: tuple[tuple[str, Callable[..., BaseModel], type[BaseModel], str], ...] = (
        ("learning", learning, Learning, "Runs, rounds, and what the gate decided."),
        ("releases", releases, Releases, "Decisions, and how a canary does."),
    )
    for name, make, kind, text in pages:
        _page(router, watch, name, make, kind, text)
    _fleet(router, watch, groups_of(task))
    _reports(router, watch)
    _letters(router, watch, task)
    _health(router, watch)

    @router.get("/api/overview", responses=described(Overview))
    def get_overview(span_s: Annotated[int, Query(ge=60, le=DAY_S)] = HOUR_S) -> Response:
        """The loop with its rates, and what is wrong; its history is of the last `span_s`."""
        return as_json(watch.look(lambda seen: overview(seen, span_s)))

    @router.get("/api/processes", responses=described(list[ProcessUse]))
    def get_processes() -> Response:
        """The processes that `tidewheel up` runs on this machine for the console's --state."""
        return as_json(usage.read())

    @router.get("/api/jobs", responses=described(JobsReport))
    def get_jobs() -> Response:
        """Jobs of batch scoring that the state folder knows or that are in --jobs folders."""
        found, wrong = jobs()
        each = [
            {
                **job.manifest.model_dump(),
                "id": job.id,
                "running": job.running,
                "queue": queue_row(job.place),
            }
            for job in found
        ]
        return as_json({"jobs": each, "unreadable": wrong})

    return router


def _page(
    router: APIRouter,
    watch: Watch,
    name: str,
    make: Callable[..., BaseModel],
    kind: type[BaseModel],
    text: str,
) -> None:
    def get() -> Response:
        return as_json(watch.look(make))

    router.get(
        f"/api/{name}", responses=described(kind), description=text, operation_id=f"get_{name}"
    )(get)


def _fleet(router: APIRouter, watch: Watch, groups: Mapping[str, str]) -> None:
    @router.get("/api/fleet", responses=described(FleetPage))
    def get_fleet(query: Annotated[FleetQuery, Query()]) -> Response:
        """One page of the list of devices."""
        return as_json(watch.look(lambda seen: fleet_page(seen, query, groups)))

    @router.get("/api/devices/{name}", responses=described(DevicePage))
    def get_device(name: str) -> Response:
        """One device: its account, versions, windows and drift."""
        found = watch.look(lambda seen: device_page(seen, name))
        if found is None:
            raise HTTPException(404, f"no device {name}")
        return as_json(found)


def _reports(router: APIRouter, watch: Watch) -> None:
    @router.get("/api/status", responses=described(StatusReport))
    def get_status() -> Response:
        """What `tidewheel status --json` prints."""
        return Response(
            watch.look(lambda seen: to_json(status.to_json(seen.status))),
            media_type="application/json",
        )

    @router.get("/api/runs", responses=described(RunsReport))
    def get_runs() -> Response:
        """What `tidewheel rounds --json` prints, of the runs that the topic still has."""
        found = watch.look(
            lambda seen: rounds.to_json(seen.view.task, rounds.history(seen.view.rounds))
        )
        return as_json(found)

    @router.get("/api/decisions", responses=described(DecisionsReport))
    def get_decisions() -> Response:
        """What `tidewheel releases --json` prints."""

        def make(seen: Any) -> dict[str, Any]:
            decided = [seen.view.decisions[seq] for seq in sorted(seen.view.decisions)]
            return {"task": seen.view.task, "decisions": [describe_decision(d) for d in decided]}

        return as_json(watch.look(make))

    @router.get("/api/timeline", responses=described(list[Entry]))
    def get_timeline(last: Annotated[int, Query(ge=1, le=ENTRIES)] = 200) -> Response:
        """The newest lines of `tidewheel timeline --json`, oldest first."""
        return as_json(watch.look(lambda seen: seen.view.timeline.entries[-last:]))


def _letters(router: APIRouter, watch: Watch, task: Task) -> None:
    @router.get("/api/dead-letters", responses=described(Quality))
    def get_letters() -> Response:
        """The newest dead letters."""
        return as_json(watch.look(lambda seen: quality(seen.beside.letters, seen.view.unreadable)))

    @router.get("/api/dead-letters/{offset}", responses=described(LetterDetail))
    def get_letter(offset: int) -> Response:
        """One of them, with what can be decoded."""
        found = watch.look(lambda seen: letter_detail(task, seen.beside.letters, offset))
        if found is None:
            raise HTTPException(404, f"no dead letter at offset {offset} among the newest")
        return as_json(found)


def _health(router: APIRouter, watch: Watch) -> None:
    @router.get("/live", include_in_schema=False)
    def live() -> Response:
        return Response("alive\n", media_type="text/plain")

    @router.get("/ready", include_in_schema=False)
    def ready() -> Response:
        text = "ready\n" if watch.ready else "the topics' past is not read yet\n"
        return Response(text, 200 if watch.ready else 503, media_type="text/plain")
