"""Views of what happened: `tidewheel status`, `timeline`, `tail`, `dead-letters`, `query`,
`console`."""

import time
from contextlib import closing, suppress
from dataclasses import replace
from itertools import chain
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from compose.cli.arguments import (
    DEFAULT_STATE,
    AsJson,
    Kafka,
    State,
    StorePlace,
    TaskArgument,
    broker_of,
    configure_log,
    store_of,
)
from compose.launcher.state_dir import StateDir
from compose.reports import terminal
from compose.reports.terminal import moment
from streams.contract.documents import encoded
from streams.contract.errors import BrokerUnavailable, UsageError, line_of
from streams.contract.task import load_task

if TYPE_CHECKING:
    from streams.fleet.timeline import Entry
    from streams.fleet.view import FleetView


def timeline(
    task: TaskArgument,
    state: State = DEFAULT_STATE,
    kafka: Kafka = None,
    since: Annotated[
        str | None, typer.Option(metavar="2h", help="Only the last 90s, 30m, 2h or 7d.")
    ] = None,
    json: AsJson = False,
) -> None:
    """Show what happened, when and why: runs, decisions, devices that went back, drift, agreement.

    Prints lines in the order of time, with the evidence in brackets; --json prints JSON lines.
    Without a broker it shows what `up` saw last.
    """
    from compose.reports.status import CONNECT_S
    from streams.fleet.following import read_view

    ago_s, name = None if since is None else ago(since), load_task(task).id
    try:
        view = read_view(broker_of(state, kafka), name, CONNECT_S)
    except BrokerUnavailable as exc:
        view, _ = _last_seen(state, exc)
    for entry in view.timeline.entries:
        if ago_s is None or entry.time_us >= (time.time() - ago_s) * 1e6:
            terminal.say(encoded(entry).decode() if json else entry_line(entry))


def ago(text: str) -> float:
    """Return "2h", "30m", "90s" or "7d" in seconds; raise UsageError."""
    from streams.batch.specification import seconds

    try:
        return seconds(text)
    except ValueError as exc:
        raise UsageError(f"--since {text}: {exc}") from exc


def entry_line(entry: "Entry") -> str:
    """Return one line for a person; the evidence is in the JSON form."""
    return f"{moment(entry.time_us)}  {entry.text}" + (f": {entry.reason}" if entry.reason else "")


def status(
    task: TaskArgument,
    state: State = DEFAULT_STATE,
    kafka: Kafka = None,
    labels: Annotated[
        bool,
        typer.Option(
            "--labels",
            help="Also count the events that have a label, of the 7 days up to the newest event, "
            'and with source="live" how late labels are; reads these events in the store.',
        ),
    ] = False,
    store: StorePlace = None,
    json: AsJson = False,
) -> None:
    """Show the fleet from its topics: devices, agreement, drift, rounds, the release; and the
    workers' speed and lag. Without a broker it shows what `up` saw last."""
    from compose.reports.follower import Lag
    from compose.reports.problems import Status
    from compose.reports.status import print_status, read_status

    loaded = load_task(task)
    try:
        found = read_status(broker_of(state, kafka), loaded)
    except BrokerUnavailable as exc:
        view, at_us = _last_seen(state, exc)
        found = Status(view, Lag(), at_us / 1e6, past=True)
    if labels:
        from streams.worker.store.query import label_delay

        found = replace(
            found, labels=label_delay(store_of(state, store), live=loaded.source == "live")
        )
    print_status(found, terminal.console(), as_json=json)


def tail(
    task: TaskArgument,
    topic: Annotated[
        Literal[
            "events",
            "labels",
            "scores",
            "windows",
            "fleet",
            "rounds",
            "releases",
            "artifacts",
            "dead-letters",
        ],
        typer.Argument(metavar="TOPIC", help="Of the task's topics, without the task's name."),
    ],
    state: State = DEFAULT_STATE,
    kafka: Kafka = None,
    last: Annotated[
        int | None,
        typer.Option(min=0, help="End after the last so many messages of each partition."),
    ] = None,
    json: AsJson = False,
) -> None:
    """Print the messages of a topic readably: the last five, then new ones until Ctrl-C; with
    --last those alone.

    --json prints a JSON object a line with every field. What cannot be decoded is printed with the
    reason.
    """
    from streams.contract.topics import topic_name
    from streams.kafka.readable import rows_of
    from streams.kafka.reader import Reader

    loaded = load_task(task)
    topics = [topic_name(loaded.id, topic)]
    with (
        closing(Reader(broker_of(state, kafka), topics, from_beginning=False)) as reader,
        suppress(KeyboardInterrupt),
    ):
        bounds = reader.bounds()
        for place, (begin, end) in bounds.items():
            reader.seek(*place, max(begin, end - (SHOWN_BEFORE if last is None else last)))
        while last is None or reader.before({place: end for place, (_, end) in bounds.items()}):
            for row in chain(*(rows_of(loaded, topic, message) for message in reader.poll(0.5))):
                typer.echo(terminal.json_line(row) if json else row_line(row))


def _last_seen(state: Path, exc: BrokerUnavailable) -> tuple["FleetView", int]:
    """What `up` saw last, which is said on standard error; the error again if there is nothing."""
    from compose.reports.follower import last_seen

    found = last_seen(StateDir(state).last_seen)
    if found is None:
        raise exc
    text = f"{exc}; shown is what `tidewheel up` saw last, {moment(found[1])}"
    terminal.say(text, stderr=True)
    return found


def dead_letters(
    task: TaskArgument,
    offsets: Annotated[list[int] | None, typer.Argument(help="Those alone, whole.")] = None,
    state: State = DEFAULT_STATE,
    kafka: Kafka = None,
    reason: Annotated[str | None, typer.Option(help="Only those with this reason.")] = None,
    replay: Annotated[
        bool,
        typer.Option("--replay", help="Send those again, once the cause is fixed."),
    ] = False,
    json: AsJson = False,
) -> None:
    """List the messages that could not be decoded or scored, oldest first, show some, or send them
    again to the topic that they were on."""
    from compose.reports import dead_letters as letters
    from streams.fleet.wording import counted

    if replay and bool(offsets) == bool(reason):
        raise UsageError("--replay: give offsets, or a --reason")
    settings, name = broker_of(state, kafka), load_task(task).id
    found = letters.read_letters(settings, name)
    if offsets:
        found = [letters.find(found, offset) for offset in offsets]
    else:
        found = letters.without_copied(found) if replay else found
        found = [letter for letter in found if reason in (None, letter.reason)]
    if replay:
        sent = letters.replay(settings, name, found)
        terminal.say(f"{counted(sent, 'dead letter')} sent again")
    elif json:
        terminal.print_json(letters.reports_of(found))
    elif offsets:
        for letter in found:
            letters.print_letter(letter, terminal.console())
    else:
        letters.print_letters(found, terminal.console())


def query(
    sql: Annotated[str, typer.Argument(metavar="SQL", help="A query over the tables above.")],
    state: State = DEFAULT_STATE,
    store: StorePlace = None,
    json: AsJson = False,
) -> None:
    """Query the store with DuckDB.

    Tables: `scores` (one row per event), `labelled` (the same with the latest label,
    when, and by whom), `windows` (one row per device, window and model version: events, compared,
    agreeing, labelled, reports; of targets also mae and rmse from the teacher, of classes brier),
    `drops` and `labels`. In `windows`, labelled counts events that came with a label: those that
    got one later are in `labelled`. A table on the terminal shortens vectors; --json prints a line
    a row with all of it, NaN and infinity as null. "COPY (SELECT ...) TO 'rows.parquet'" writes a
    file, .csv too.
    """
    import duckdb

    from streams.worker.store.query import open_store, with_durations

    with closing(open_store(store_of(state, store))) as connection:
        try:
            result = connection.sql(sql)
            if result is None:
                return
            found = with_durations(connection, result.to_arrow_table())
        except duckdb.Error as exc:
            raise UsageError(f"the query failed: {line_of(exc)}") from exc
    if json:
        for row in found.to_pylist():
            typer.echo(terminal.json_line(row))
    else:
        cells = ([cell(value) for value in row.values()] for row in found.to_pylist())
        terminal.console().print(terminal.table("", found.column_names, cells))


SHOWN = 4  # of a vector's numbers
SHOWN_BEFORE = 5  # messages of each partition, before those that `tail` follows


def row_line(row: dict[str, Any]) -> str:
    """One line of `name=value`; nested values as JSON, vectors shortened."""
    return "  ".join(f"{name}={cell(value)}" for name, value in row.items())


def cell(value: object) -> str:
    """A value in a cell: of a vector the first numbers, with three digits."""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, dict):
        return dumps(value, default=str)
    if not isinstance(value, list):
        return str(value)
    shown = [f"{x:.3g}" if isinstance(x, float) else str(x) for x in value[:SHOWN]]
    more = [f"… {len(value) - SHOWN} more"] if len(value) > SHOWN else []
    return f"[{', '.join(shown + more)}]"


def console(
    task: TaskArgument,
    state: State = DEFAULT_STATE,
    kafka: Kafka = None,
    host: Annotated[
        str,
        typer.Option(
            metavar="ADDRESS",
            help="The address to listen on. Everyone who reaches another one than loopback can "
            "read everything.",
        ),
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65_535, help="0: a free port.")] = 8750,
) -> None:
    """Serve a live page of the fleet, and the same as JSON: overview, devices, learning, releases,
    data quality, batch jobs.

    Follows the topics, through broker outages, and changes nothing. Ctrl-C stops it. Needs
    tidewheel[console].
    """
    try:
        from compose.console.server import ConsoleSettings, run
    except ModuleNotFoundError as exc:
        if exc.name not in ("fastapi", "jinja2", "uvicorn"):
            raise
        raise UsageError(f'the console needs {exc.name}: pip install "tidewheel[console]"') from exc

    loaded = load_task(task)
    configure_log()
    settings = ConsoleSettings(
        broker=broker_of(state, kafka),
        state=state,
        reference=task,
        options=() if state == DEFAULT_STATE else ("--state", str(state)),
        kafka=kafka,
        host=host,
        port=port,
    )
    run(settings, loaded, terminal.say)
