"""A job in this process: its progress, its signals, its end."""

import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from compose.reports.terminal import console, print_json, say
from streams.contract.errors import UsageError
from streams.contract.task import Task
from streams.kafka.settings import BrokerSettings
from streams.runtime.failpoints import read_failpoint
from streams.runtime.interrupts import Interrupts

if TYPE_CHECKING:
    from streams.batch.jobs.job_folder import JobFolder
    from streams.batch.records.progress import Counts, JobDrift, Manifest

PROGRESS_S, LIVE_S = 5.0, 0.2
EXIT_CODES = {"Completed": 0, "Failed": 1, "PartiallyCompleted": 3, "Stopped": 130}
UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}
MaxErrors = Annotated[
    str | None,
    typer.Option(metavar="N|P%", help="More rows with errors fail the job; default: never."),
]
Timeout = Annotated[
    str | None,
    typer.Option(
        metavar="TIME",
        help="After 90s, 30m or 2h the job ends between two shards as PartiallyCompleted.",
    ),
]
Processes = Annotated[
    int | None,
    typer.Option(min=1, help="Processes that score; default: one a core, fewer for few rows."),
]
Ray = Annotated[
    str | None,
    typer.Option(
        "--ray",
        metavar="ADDRESS|local",
        help="Score shards as tasks of this Ray cluster, whose nodes share the job's files.",
    ),
]
Report = Annotated[
    Path | None,
    typer.Option(metavar="FILE.html", help="Write a page of counts, drift, accuracy and errors."),
]


def check_report(path: Path | None) -> None:
    """Raise UsageError before anything is scored if a report cannot be written."""
    from streams.batch.report.plots import need_matplotlib

    if path is not None:
        need_matplotlib()
        if not path.absolute().parent.is_dir():
            raise UsageError(f"--report {path}: there is no folder {path.absolute().parent}")


def seconds_of(text: str | None, option: str = "--timeout") -> float | None:
    """Return a time as 90s, 30m, 2h or 1d in seconds; raise UsageError for another text."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d{1,9}(?:\.\d+)?)([smhd]?)", text)
    if match is None or float(match[1]) == 0:
        raise UsageError(f"{option} {text}: write a time as 90s, 30m, 2h or 1d")
    return float(match[1]) * UNITS[match[2]]


def run_job(
    folder: "JobFolder",
    task: Task,
    json: bool,
    max_errors: str | None = None,
    *,
    timeout: str | None = None,
    processes: int | None = None,
    ray: str | None = None,
    broker: Callable[[], BrokerSettings] | None = None,
    report: Path | None = None,
    lock: int | None = None,
) -> None:
    """Run a job whose folder is held by `lock`; end the command with its exit code."""
    from streams.batch.jobs.job import Job
    from streams.batch.report.page import write_report

    with Interrupts() as interrupts:
        interrupts.patient = True
        job = Job(
            folder,
            task,
            stopping=interrupts.stop.is_set,
            tell=_progress(),
            reached=read_failpoint(os.environ),
            max_errors=max_errors,
            timeout_s=seconds_of(timeout),
            processes=processes,
            ray=ray,
            broker=broker,
            lock=lock,
        )
        found = job.run()
    if report is not None:
        write_report(folder, report)
    if json:
        print_json(found)
    else:
        say(f"{found.state}: {found.completed} of {found.shards} shards")
        tell_counts(found)
        say(f"  output {found.output}")
        if report is not None:
            say(f"  report {report}")
    if found.state == "Completed":
        return
    why = found.reason or "it was stopped"
    errors = console(stderr=True)
    text = f"tidewheel: {why}; to continue: tidewheel jobs resume {folder.folder}"
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
