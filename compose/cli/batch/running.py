"""A job in this process: its progress, its signals, its end."""

import os
import time
from typing import TYPE_CHECKING, Annotated

import typer

from compose.reports.terminal import console, print_json, say
from streams.batch.records.settings import Settings
from streams.contract.task import Task
from streams.runtime.failpoints import read_failpoint
from streams.runtime.interrupts import Interrupts

if TYPE_CHECKING:
    from collections.abc import Callable

    from streams.batch.jobs.job_folder import JobFolder
    from streams.batch.records.progress import Counts, JobDrift, Manifest

PROGRESS_S, LIVE_S = 5.0, 0.2
EXIT_CODES = {"Completed": 0, "Failed": 1, "PartiallyCompleted": 3, "Stopped": 130}
_FIELDS = Settings.model_fields
MaxErrors = Annotated[
    str | None, typer.Option(metavar="N|P%", help=_FIELDS["max_errors"].description)
]
Timeout = Annotated[str | None, typer.Option(metavar="TIME", help=_FIELDS["timeout"].description)]
Processes = Annotated[int | None, typer.Option(min=1, help=_FIELDS["processes"].description)]


def run_job(job: "JobFolder", task: Task, settings: Settings, lock: int, json: bool) -> None:
    """Run a job whose folder is held by `lock`; end the command with its exit code."""
    from streams.batch.jobs.job import Job

    with Interrupts() as interrupts:
        interrupts.patient = True
        found = Job(
            job,
            task,
            stopping=interrupts.stop.is_set,
            tell=_progress(),
            reached=read_failpoint(os.environ),
            settings=settings,
            lock=lock,
        ).run()
    if json:
        print_json(found)
    else:
        say(f"{found.state}: {found.completed} of {found.shards} shards")
        tell_counts(found)
        say(f"  output {found.output}")
        say(f"  report {job.report}")
    if found.state == "Completed":
        return
    why = found.reason or "it was stopped"
    errors = console(stderr=True)
    text = f"tidewheel: {why}; to continue: tidewheel jobs resume {job.folder}"
    errors.print(text, markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(EXIT_CODES[found.state])


def tell_counts(found: "Manifest") -> None:
    say(
        f"  {found.processed:,} of {found.total:,} rows with {found.model} in "
        f"{found.seconds:.3g} s, {found.rows_per_s:,.0f} rows/s"
    )
    say(f"  {found.succeeded:,} answers, {found.processed - found.succeeded:,} errors"
        f"{_by_reason(found.errors)}")  # fmt: skip
    if found.excluded:
        say(f"  {found.excluded:,} rows are excluded")
    if found.readings:
        say(f"  {found.readings:,} readings, {sum(found.broken.values()):,} break a segment"
            f"{_by_reason(found.broken)}")  # fmt: skip
    if found.labelled:
        share = found.correct / found.labelled
        say(f"  {found.correct:,} of {found.labelled:,} labelled rows are correct, {share:.3g}")
    if found.drift is not None:
        say(f"  drift: {_verdict(found.drift)}")
    if found.reason:
        say(f"  reason: {found.reason}")


def _verdict(drift: "JobDrift") -> str:
    found = drift.inputs_and_answers
    if not found.decided:
        return f"undecided, {found.segments:,} segments are too few"
    if not found.alarm:
        return "none"
    return f"in {found.share:.0%} of the channels, most in {found.worst}"


def _by_reason(counts: dict[str, int]) -> str:
    text = ", ".join(f"{code} {count:,}" for code, count in counts.items())
    return f" ({text})" if text else ""


def _progress() -> "Callable[[Counts, int, float], None]":
    """Return what shows the progress on standard error: one line that changes on a terminal, a line
    every PROGRESS_S elsewhere."""
    terminal, last, first = console(stderr=True), time.monotonic(), None
    live = terminal.is_terminal

    def tell(counts: "Counts", total: int, seconds: float) -> None:
        nonlocal last, first
        first = (counts.read, seconds) if first is None else first
        done = live and counts.read == total
        if time.monotonic() - last < (LIVE_S if live else PROGRESS_S) and not done:
            return
        last = time.monotonic()
        rate = (counts.read - first[0]) / max(seconds - first[1], 1e-9)
        left = f", {(total - counts.read) / rate:,.0f} s left" if rate else ""
        text = f"{counts.read:,} of {total:,} rows, {counts.failed:,} errors"
        line = f"{text}, {rate:,.0f} rows/s{left}"
        end = "\r" if live and not done else "\n"
        line = line.ljust(terminal.width - 1)[: terminal.width - 1] if live else line
        terminal.print(line, markup=False, highlight=False, soft_wrap=True, end=end)

    return tell
