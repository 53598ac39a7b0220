"""`tidewheel score`: batch scoring of stored files."""

import os
import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

from compose.cli.arguments import (
    DEFAULT_STATE,
    AsJson,
    Kafka,
    RegistryPlace,
    State,
    TaskArgument,
    Trust,
    broker_of,
    registry_of,
    trusted_keys,
)
from compose.cli.batch.running import (
    MaxErrors,
    Processes,
    Report,
    Timeout,
    check_report,
    run_job,
    seconds_of,
)
from compose.launcher.state_dir import StateDir
from streams.contract.artifact import Artifact
from streams.contract.errors import UsageError
from streams.contract.task import Task, absolute_reference, load_task
from streams.runtime.failpoints import read_failpoint
from streams.runtime.key_files import load_public_key


def score(
    task: TaskArgument,
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT",
            help="Files, folders, globs and URLs (s3://...) of Parquet, Arrow, CSV or JSON Lines, "
            "or Delta tables; - is standard input.",
        ),
    ],
    to: Annotated[
        str,
        typer.Option(
            metavar="OUTPUT",
            help="A new folder of Parquet files, of JSON Lines (.jsonl) or CSV (.csv); a Delta "
            "table (.delta); a database: .duckdb, .sqlite or postgresql://HOST/NAME; kafka:TOPIC.",
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
    drop: Annotated[
        str,
        typer.Option(
            metavar="NAMES",
            help="The segment's numbers are all columns but these and those that another option "
            "names, comma-separated.",
        ),
    ] = "",
    keep: Annotated[
        str, typer.Option(metavar="NAMES", help="Columns that are carried over, comma-separated.")
    ] = "",
    label_column: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="The column of true labels.")
    ] = None,
    where: Annotated[
        str | None,
        typer.Option(metavar="EXPRESSION", help="Score only these rows: a DuckDB expression."),
    ] = None,
    time: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="The column of the event time.")
    ] = None,
    start: Annotated[
        str | None,
        typer.Option("--from", metavar="TIME", help="Score only rows from this event time on."),
    ] = None,
    stop: Annotated[
        str | None,
        typer.Option("--until", metavar="TIME", help="Score only rows before this event time."),
    ] = None,
    rows: Annotated[
        str,
        typer.Option(
            "--as",
            metavar="segments|readings",
            help="What a row is: a whole segment, or a reading with --time, a device (--id) and a "
            "column a channel, cut into segments as on the device.",
        ),
    ] = "segments",
    input_format: Annotated[
        str | None,
        typer.Option(
            metavar="FORMAT",
            help="parquet, arrow, arrows, csv, tsv, jsonl or bedrock; default: by the suffix.",
        ),
    ] = None,
    output_format: Annotated[
        str | None,
        typer.Option(
            metavar="FORMAT",
            help="parquet, jsonl, csv, bedrock, delta, duckdb, sqlite, postgresql or kafka; "
            "default: by --to.",
        ),
    ] = None,
    table: Annotated[str, typer.Option(help="The table of a database.")] = "scores",
    max_errors: MaxErrors = None,
    timeout: Timeout = None,
    processes: Processes = None,
    report: Report = None,
    job: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="The job's folder; default: OUTPUT.job beside it."),
    ] = None,
    state: State = DEFAULT_STATE,
    registry: RegistryPlace = None,
    trust: Trust = None,
    kafka: Kafka = None,
    json: AsJson = False,
) -> None:
    """Score stored segments with the model that devices run: one output row for each input row.

    A job that was stopped or killed is continued with `tidewheel jobs resume`. Exits 0 when the job
    is complete, 1 when it failed, 2 for a wrong call, 3 when its time was over, 130 when it was
    stopped.
    """
    from streams.batch.jobs import submission
    from streams.batch.jobs.job import submit
    from streams.batch.jobs.job_index import JobIndex
    from streams.batch.records import documents
    from streams.batch.sources.inputs import Wanted

    loaded, reference = load_task(task), absolute_reference(task)
    artifact, data = _model(loaded, model, state, registry, trust)
    request = submission.Request(
        reference=reference,
        inputs=inputs,
        output=to,
        wanted=Wanted(
            columns=_names(columns),
            drop=_names(drop),
            id=identity,
            label=label_column,
            keep=_names(keep),
            where=where,
            time=time,
            start=start,
            stop=stop,
        ),
        rows=_kind(rows),
        input_format=documents.input_format(input_format),
        output_format=output_format,
        table=table,
        max_errors=max_errors,
        job=job,
        stdin=sys.stdin.buffer,
    )
    seconds_of(timeout)
    check_report(report)
    broker = partial(broker_of, state, kafka)
    specification = submission.specify(loaded, artifact, request, broker)
    folder, reached = request.folder, read_failpoint(os.environ)
    with folder.locked():
        if folder.submitted:
            raise UsageError(f"{folder.folder} has become a job meanwhile: use another --job")
        submit(folder, specification, data, reached)
        JobIndex(state).add(specification.id, folder)
        run_job(
            folder, loaded, json, timeout=timeout, processes=processes, broker=broker, report=report
        )


def _model(
    task: Task, name: str, state: Path, registry: str | None, trust: list[Path] | None
) -> tuple[Artifact, bytes]:
    """Return the named model version, verified, and its bytes."""
    from federation.registry.named_model import named_model

    layout = StateDir(state)
    if not trust and not layout.public_key.exists():
        raise UsageError(
            f"{layout.public_key} is missing, the key that signs models: run tidewheel prepare, "
            "name a --state, or a key with --trust and a file with --model"
        )
    return named_model(
        task,
        name,
        lambda: [load_public_key(key) for key in trusted_keys(layout, trust)],
        lambda: registry_of(task, state, registry),
        "--model",
    )


def _names(text: str) -> list[str]:
    return text.split(",") if text else []


def _kind(rows: str) -> Literal["segments", "readings"]:
    if rows == "readings":
        return "readings"
    if rows == "segments":
        return "segments"
    raise UsageError(f"--as {rows}: segments or readings")
