"""Batch jobs, from their folders."""

from pathlib import Path

from fastapi import Request
from nicegui import run, ui

from compose.dashboard.pages.parts import Drawn, card, el, facts, version, when
from compose.dashboard.pages.site import Frame, Site
from compose.reports.jobs import FoundJobs, JobReport, queue_row, told

EVERY_S = 3.0


def add(site: Site) -> None:
    @ui.page("/jobs")
    async def page(request: Request) -> None:
        frame = Frame(site, request, "/jobs", "Batch jobs")
        with frame.content:
            el("h1", text="Batch jobs")
            jobs: Drawn[FoundJobs | None] = Drawn(_draw)
            jobs._box.style("display: flex; flex-direction: column; gap: 16px; width: 100%")
        frame.live(lambda _: None, lambda _: None)

        async def refresh() -> None:
            jobs.show(await run.io_bound(site.jobs))

        with frame.content:
            await refresh()
            ui.timer(EVERY_S, refresh, immediate=False)


def _draw(found: FoundJobs | None) -> None:
    reports, wrong = found or ([], [])
    for line in wrong:
        with ui.element("div").classes("problem warning"):
            el("span", "sign", "▲")
            ui.label(line)
    if not reports:
        el("div", "card empty", "No job yet. tidewheel score TASK INPUT --to OUTPUT makes one with "
           "the console's --state; --jobs FOLDER names folders of other ones.")  # fmt: skip
    for report in reports:
        _draw_job(report)


def _draw_job(report: JobReport) -> None:
    found = report.manifest
    with card(Path(found.job).name):
        with ui.element("div").classes("row-of"):
            good, bad = found.state == "Completed", found.state == "Failed" or report.abandoned
            word = f"{found.state}, no process works on it" if report.abandoned else found.state
            el("span", "tag good" if good else "tag bad" if bad else "tag", word)
            version(found.model)
            with ui.element("span").classes("muted small"):
                el("span", text="began ")
                when(found.started_us)
        done = 100 * found.processed / found.total if found.total else 0.0
        meter = ui.element("div").classes("meter").style("margin: 10px 0")
        meter.props(f"role=progressbar aria-valuenow={done:.0f} aria-valuemin=0 aria-valuemax=100")
        with meter:
            ui.element("div").style(f"width: {done:.1f}%")
        errors = ", ".join(f"{count:,} {code}" for code, count in found.errors.items())
        pairs = {
            "rows": f"{found.processed:,} of {found.total:,}, {found.rows_per_s:,.0f} a second",
            "shards": f"{found.completed:,} of {found.shards:,}",
            "errors": errors or "none",
            "output": found.output,
        }
        if found.labelled:
            share = found.correct / found.labelled
            pairs["accuracy"] = f"{share:.3g} of {found.labelled:,} labelled rows"
        if found.reason:
            pairs["reason"] = found.reason
        if report.place is not None:
            pairs["queue"] = told(queue_row(report.place)).strip()
        elif not report.running and found.state != "Completed":
            pairs["to continue"] = f"tidewheel jobs resume {found.job}"
        facts(pairs)
