"""`tidewheel score`: batch scoring of stored files. Its options are the fields of Settings."""

import inspect
import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import click
import typer
import typer.main

from compose.cli import arguments
from compose.cli.arguments import SHARED, taking
from compose.reports.terminal import print_json, say
from streams.batch.specification import Settings, options
from streams.contract.errors import UsageError
from streams.contract.task import Task
from streams.runtime.failpoints import read_failpoint
from streams.runtime.process import Interrupts

if TYPE_CHECKING:
    from streams.batch.jobs.job_folder import JobFolder

PROGRESS_S = 5.0
EXIT_CODES = {"Completed": 0, "Failed": 1, "PartiallyCompleted": 3, "Stopped": 130}


FIELDS = inspect.signature(Settings).parameters


def _parameters() -> Iterator[inspect.Parameter]:
    for name, field in FIELDS.items():
        if name != "cwd":
            default = field.default if _is_text(field) or name == "state" else None
            annotation = SHARED.get(name) or option_of(name)
            yield inspect.Parameter(
                name, field.KEYWORD_ONLY, default=default, annotation=annotation
            )


def _is_text(field: inspect.Parameter) -> bool:
    """Return whether the option of a field has a text, one that must be given or a default."""
    return field.default is field.empty or isinstance(field.default, str)


def option_of(name: str) -> Any:
    """Return the annotation of one option of a job."""
    about = options()[name]
    if name == "inputs":
        return Annotated[list[str], typer.Argument(metavar="INPUT", help=about.description)]
    kind: Any = str if _is_text(FIELDS[name]) else str | None
    kind = int | None if name == "processes" else kind
    return Annotated[kind, arguments.option_of(name, about)]


def run_score(
    settings: Settings,
    detach: Annotated[
        bool,
        typer.Option(
            "--detach", help="Queue the job for `tidewheel jobs run`, and print its id at once."
        ),
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Score stored segments with the model that devices run: one output row for each input row.

    It reads the columns of files as they are: `readings` of the task file is not called.

    A job that was stopped or killed is continued with `tidewheel jobs resume`. Exits 0 when the job
    is complete, 1 when it failed, 2 for a wrong call, 3 when its time was over, 130 when it was
    stopped. With --detach it exits 0 when the job is queued.
    """
    from compose.cli.batch.submitting import submitted

    with submitted(settings, queued=detach) as (job, task, lock):
        if not detach:
            run_job(job, task, settings, lock, json)
            return
        identity = job.specification().id
        if json:
            print_json({"id": identity, "job": str(job.folder), "state": "Scheduled"})
        else:
            say(identity)


score = taking(run_score, _parameters(), Settings.of)


def read_words(words: Sequence[str]) -> Settings:
    """Return the settings that words behind `tidewheel score` say; raise UsageError if they are no
    such call."""
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command()(taking(lambda settings: settings, _parameters(), Settings.of))
    try:
        found = typer.main.get_command(app).main(
            list(words), prog_name="score", standalone_mode=False
        )
    except click.ClickException as exc:
        raise UsageError(f"score: {exc.format_message()}") from exc
    if not isinstance(found, Settings):
        raise UsageError("score: --help is no job")
    return found


# --- a job in this process ------------------------------------------------------------------------


def run_job(job: "JobFolder", task: Task, settings: Settings, lock: int, json: bool) -> None:
    """Run a job whose folder is held by `lock`; end the command with its exit code."""
    from streams.batch.jobs.job import Job
    from streams.batch.jobs.manifest import nothing_of, summary_of

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
        for line in summary_of(found):
            say(f"  {line}")
        say(f"  output {found.output}")
        say(f"  report {job.report}")
        if found.state == "Completed" and not found.processed:
            say(f"no rows: {nothing_of(found)}")
    if found.state == "Completed":
        return
    why = found.reason or "it was stopped"
    warn(f"{why}; to continue: tidewheel jobs resume {job.folder}")
    raise typer.Exit(EXIT_CODES[found.state])


def _progress() -> "Callable[[str], None]":
    """Return what writes a line to standard error every PROGRESS_S."""
    last = time.monotonic()

    def tell(text: str) -> None:
        nonlocal last
        if time.monotonic() - last >= PROGRESS_S:
            last = time.monotonic()
            say(text, stderr=True)

    return tell


def warn(text: str) -> None:
    say(f"tidewheel: {text}", stderr=True)
