"""`tidewheel score` and `tidewheel jobs`: batch scoring of stored files."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from compose.cli.arguments import (
    DEFAULT_STATE,
    AsJson,
    RegistryPlace,
    State,
    TaskArgument,
    Trust,
    registry_of,
    trusted_keys,
)
from compose.launcher.options import absolute_reference
from compose.launcher.state_dir import StateDir
from compose.reports.terminal import console, moment, print_json, say
from streams.contract.artifact import Artifact, unpack
from streams.contract.errors import ArtifactError, UsageError
from streams.contract.task import Task, load_task
from streams.runtime.failpoints import read_failpoint
from streams.runtime.interrupts import Interrupts
from streams.runtime.key_files import load_public_key

if TYPE_CHECKING:
    from streams.batch.documents import Counts, Manifest
    from streams.batch.job_folder import JobFolder

PROGRESS_S = 5.0
MaxErrors = Annotated[
    str | None,
    typer.Option(metavar="N|P%", help="More rows with errors fail the job; default: never."),
]
Folder = Annotated[Path, typer.Argument(metavar="FOLDER", help="The job's folder.")]

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)


def score(
    task: TaskArgument,
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT", help="Files, folders or globs: Parquet, Arrow or JSON Lines."
        ),
    ],
    to: Annotated[
        Path,
        typer.Option(
            metavar="OUTPUT", help="A new folder: JSON Lines if it ends with .jsonl, else Parquet."
        ),
    ],
    model: Annotated[
        str,
        typer.Option(metavar="FILE|VERSION|served", help="The model: an artifact, or a version."),
    ] = "served",
    identity: Annotated[
        str | None, typer.Option("--id", metavar="COLUMN", help="The column that names a row.")
    ] = None,
    columns: Annotated[
        str,
        typer.Option(
            metavar="NAMES",
            help="The segment's list column, or one column a channel for segments of one sample, "
            "comma-separated; default: segment, or the channels.",
        ),
    ] = "",
    keep: Annotated[
        str, typer.Option(metavar="NAMES", help="Columns that are carried over, comma-separated.")
    ] = "",
    label_column: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="The column of true labels.")
    ] = None,
    max_errors: MaxErrors = None,
    job: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="The job's folder; default: OUTPUT.job beside it."),
    ] = None,
    state: State = DEFAULT_STATE,
    registry: RegistryPlace = None,
    trust: Trust = None,
    json: AsJson = False,
) -> None:
    """Score stored segments with the model that devices run: one output row for each input row.

    A job that was stopped or killed is continued with `tidewheel jobs resume`. Exits 0 when the job
    is complete, 1 when it failed, 2 for a wrong call, 130 when it was stopped.
    """
    from streams.batch import submission
    from streams.batch.job import submit

    loaded, reference = load_task(task), absolute_reference(task)
    artifact, data = _model(loaded, model, state, registry, trust)
    request = submission.Request(
        reference=reference,
        inputs=inputs,
        output=to,
        columns=_names(columns),
        id=identity,
        label=label_column,
        keep=_names(keep),
        max_errors=max_errors,
        job=job,
    )
    specification = submission.specify(loaded, artifact, request)
    folder, reached = request.folder, read_failpoint(os.environ)
    with folder.locked():
        if folder.submitted:
            raise UsageError(f"{folder.folder} has become a job meanwhile: use another --job")
        submit(folder, specification, data, reached)
        _run(folder, loaded, json)


@app.command("resume")
def resume(folder: Folder, max_errors: MaxErrors = None, json: AsJson = False) -> None:
    """Do what is missing of a job; a job that is complete stays as it is.

    Refuses input files that have changed since the job began, by name. --max-errors replaces the
    job's limit. Exits as `score`.
    """
    from streams.batch.job_folder import JobFolder
    from streams.batch.submission import most_errors

    most_errors(max_errors, 0)
    job = JobFolder(folder.absolute())
    loaded = load_task(job.specification().task.reference)
    with job.locked():
        _run(job, loaded, json, max_errors)


@app.command("show")
def show(folder: Folder, json: AsJson = False) -> None:
    """Show a job's state, its counts and its input, from its folder."""
    from compose.reports.jobs import read_job

    report = read_job(folder)
    found, running = report.manifest, report.running
    if json:
        print_json({**found.model_dump(), "running": running})
        return
    gone = ", but no process works on it" if report.abandoned else ""
    say(f"{found.state}{gone}: {found.completed} of {found.shards} shards, since "
        f"{moment(found.started_us)}")  # fmt: skip
    _tell(found)
    for file in found.inputs:
        say(f"  input {file.name}: {file.rows:,} rows, sha256 {file.sha256[:12]}")
    if not running and found.state != "Completed":
        say(f"tidewheel jobs resume {folder}")


def _model(
    task: Task, name: str, state: Path, registry: str | None, trust: list[Path] | None
) -> tuple[Artifact, bytes]:
    """Return the named model version, verified, and its bytes."""
    path, layout = Path(name), StateDir(state)
    if not trust and not layout.public_key.exists():
        raise UsageError(
            f"{layout.public_key} is missing, the key that signs models: run tidewheel prepare, "
            "name a --state, or a key with --trust and a file with --model"
        )
    try:
        if path.is_file():
            data = path.read_bytes()
            keys = [load_public_key(key) for key in trusted_keys(layout, trust)]
            return unpack(data, keys, task=task.name, task_version=task.version), data
        if path.suffix == ".twa":
            raise UsageError(f"--model {name}: there is no such file")
        known = registry_of(task, state, registry)
        if name == "served":
            serving = known.serving()
            if serving is None:
                raise UsageError(
                    f"no model is served in {known.where}: tidewheel prepare, or name a --model"
                )
            name = serving.model
        data = known.read(name)
        return known.checked(data, name), data
    except (ArtifactError, OSError) as exc:
        raise UsageError(f"--model {name}: {exc}") from exc


def _names(text: str) -> list[str]:
    return text.split(",") if text else []


def _run(folder: "JobFolder", task: Task, json: bool, max_errors: str | None = None) -> None:
    """Run a job whose folder is held; end the command with its exit code."""
    from streams.batch.job import Job

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
        _tell(found)
        say(f"  output {found.output}")
    if found.state == "Completed":
        return
    why = found.reason or "it was stopped"
    errors = console(stderr=True)
    text = f"tidewheel: {why}; to continue: tidewheel jobs resume {folder.folder}"
    errors.print(text, markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(130 if found.state == "Stopped" else 1)


def _tell(found: "Manifest") -> None:
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
