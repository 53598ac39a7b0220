"""A job in this process: its progress, its signals, its end."""

import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from compose.launcher.interrupts import Interrupts
from compose.reports.terminal import console, print_json, say
from streams.contract.task import Task
from streams.runtime.failpoints import read_failpoint

if TYPE_CHECKING:
    from streams.batch.jobs.job_folder import JobFolder
    from streams.batch.records.documents import Counts, Manifest

PROGRESS_S = 5.0
MaxErrors = Annotated[
    str | None,
    typer.Option(metavar="N|P%", help="More rows with errors fail the job; default: never."),
]


def run_job(folder: "JobFolder", task: Task, json: bool, max_errors: str | None = None) -> None:
    """Run a job whose folder is held; end the command with its exit code."""
    from streams.batch.jobs.job import Job

    with Interrupts() as interrupts:
        interrupts.patient = True
        job = Job(
            folder,
            task,
            stopping=interrupts.stop.is_set,
            tell=_progress(),
            reached=read_failpoint(os.environ),
            max_errors=max_errors,
        )
        found = job.run()
    if json:
        print_json(found)
    else:
        say(f"{found.state}: {found.completed} of {found.shards} shards")
        tell_counts(found)
        say(f"  output {found.output}")
    if found.state == "Completed":
        return
    why = found.reason or "it was stopped"
    errors = console(stderr=True)
    text = f"tidewheel: {why}; to continue: tidewheel jobs resume {folder.folder}"
    errors.print(text, markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(130 if found.state == "Stopped" else 1)


def tell_counts(found: "Manifest") -> None:
    errors = ", ".join(f"{code} {count:,}" for code, count in found.errors.items())
    say(
        f"  {found.processed:,} of {found.total:,} rows with {found.model} in "
        f"{found.seconds:.3g} s, {found.rows_per_s:,.0f} rows/s"
    )
    say(f"  {found.succeeded:,} answers, {found.processed - found.succeeded:,} errors"
        f"{f' ({errors})' if errors else ''}")  # fmt: skip
    if found.labelled:
        share = found.correct / found.labelled
        say(f"  {found.correct:,} of {found.labelled:,} labelled rows are correct, {share:.3g}")
    if found.reason:
        say(f"  reason: {found.reason}")


def _progress() -> "Callable[[Counts, int, float], None]":
    """Return what prints a line on standard error every PROGRESS_S."""
    terminal, last, first = console(stderr=True), time.monotonic(), None

    def tell(counts: "Counts", total: int, seconds: float) -> None:
        nonlocal last, first
        first = (counts.processed, seconds) if first is None else first
        if time.monotonic() - last < PROGRESS_S:
            return
        last = time.monotonic()
        rate = (counts.processed - first[0]) / max(seconds - first[1], 1e-9)
        left = f", {(total - counts.processed) / rate:,.0f} s left" if rate else ""
        text = f"{counts.processed:,} of {total:,} rows, {counts.failed:,} errors"
        line = f"{text}, {rate:,.0f} rows/s{left}"
        terminal.print(line, markup=False, highlight=False, soft_wrap=True)

    return tell
