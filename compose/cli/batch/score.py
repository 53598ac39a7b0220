"""`tidewheel score`: batch scoring of stored files."""

import os
from pathlib import Path
from typing import Annotated

import typer

from compose.cli.arguments import (
    DEFAULT_STATE,
    AsJson,
    Kafka,
    RegistryPlace,
    State,
    TaskArgument,
    Trust,
)
from compose.cli.batch.running import (
    MaxErrors,
    Processes,
    Ray,
    Report,
    Timeout,
    check_report,
    run_job,
    seconds_of,
)
from compose.cli.batch.score_options import ScoreOptions, refuse_submitted, specified
from streams.contract.errors import UsageError
from streams.runtime.failpoints import read_failpoint


def score(
    context: typer.Context,
    task: TaskArgument,
    to: Annotated[
        str,
        typer.Option(
            metavar="OUTPUT",
            help="A new folder of Parquet files, of JSON Lines (.jsonl) or CSV (.csv), or a URL "
            "for them (s3://...); a Delta table (.delta); a database: .duckdb, .sqlite or "
            "postgresql://HOST/NAME; kafka:TOPIC.",
        ),
    ],
    inputs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="INPUT",
            help="Files, folders, globs and URLs (s3://...) of Parquet, Arrow, CSV or JSON Lines, "
            "or Delta tables; - is standard input.",
        ),
    ] = None,
    model: Annotated[
        str,
        typer.Option(
            metavar="FILE|VERSION|served|best:METRIC|teacher",
            help="The model: an artifact, a device's personal.safetensors, a version, the served "
            "one, the best one by a metric that was measured before its promotion, or the teacher, "
            "which answers whole windows of a device.",
        ),
    ] = "served",
    teacher: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|teacher", help="Add the answers of this teacher to those of the model."
        ),
    ] = None,
    teacher_device: Annotated[
        str,
        typer.Option(
            metavar="auto|cpu|cuda",
            help="Where the teacher runs; auto: on CUDA where there is one. Models run on the CPU.",
        ),
    ] = "cpu",
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
    device: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="The column of the device, for a teacher's windows."),
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
    ray: Ray = None,
    report: Report = None,
    input_topic: Annotated[
        bool,
        typer.Option(
            "--input-topic",
            help="Score what lies on the topic `events`, with --from and --until by event time; "
            "no INPUT.",
        ),
    ] = False,
    from_store: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Score the rows of a worker's store, if it has kept their segments.",
        ),
    ] = None,
    job: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="The job's folder; default: OUTPUT.job beside it."),
    ] = None,
    detach: Annotated[
        bool,
        typer.Option(
            "--detach", help="Queue the job for `tidewheel jobs run`, and print its id at once."
        ),
    ] = False,
    priority: Annotated[
        int, typer.Option(help="With --detach: a higher one runs first; then the order of time.")
    ] = 0,
    expires_after: Annotated[
        str | None,
        typer.Option(
            metavar="TIME", help="With --detach: Expired if it has not begun by then, as 90s or 2h."
        ),
    ] = None,
    max_waiting: Annotated[
        int,
        typer.Option(min=1, help="With --detach: refuse the job if so many wait already."),
    ] = 1000,
    state: State = DEFAULT_STATE,
    registry: RegistryPlace = None,
    trust: Trust = None,
    kafka: Kafka = None,
    json: AsJson = False,
) -> None:
    """Score stored segments with the model that devices run: one output row for each input row.

    A job that was stopped or killed is continued with `tidewheel jobs resume`. Exits 0 when the job
    is complete, 1 when it failed, 2 for a wrong call, 3 when its time was over, 130 when it was
    stopped. With --detach it exits 0 when the job is queued.
    """
    given = {name: value for name, value in locals().items() if name != "context"}
    options = ScoreOptions(**given)
    if context.obj is not None:  # `tidewheel schedule` only reads the options
        context.obj(options)
        return
    seconds_of(timeout, "--timeout")
    if detach and ray is not None:
        raise UsageError("--ray and --detach: the runner scores on its own machine")
    if ray is not None and teacher_device != "cpu":
        raise UsageError(f"--ray and --teacher-device {teacher_device}: Ray's tasks score on CPUs")
    if detach:
        from compose.cli.batch.queued_job import enqueue

        enqueue(options)
    else:
        _score(options)


def _score(options: ScoreOptions) -> None:
    from streams.batch.jobs.job import submit
    from streams.batch.jobs.job_index import JobIndex

    check_report(options.report)
    found = specified(options)
    folder = found.folder
    with folder.locked() as lock:
        refuse_submitted(folder)
        submit(folder, found.specification, found.models, read_failpoint(os.environ))
        JobIndex(options.state).add(found.specification.id, folder)
        run_job(
            folder, found.task, options.json, timeout=options.timeout,
            processes=options.processes, ray=options.ray,
            broker=found.broker, report=options.report, lock=lock,
        )  # fmt: skip
