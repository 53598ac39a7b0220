"""`tidewheel label`: labels that other systems know."""

import csv
import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer

from compose.cli.arguments import DEFAULT_STATE, AsJson, Kafka, State, TaskArgument, broker_of
from compose.reports.terminal import print_json, say
from streams.contract.documents import encoded
from streams.contract.errors import MalformedRecord, UsageError
from streams.contract.events.json_items import KnownLabel, decode_known_labels
from streams.contract.task import Task, load_task
from streams.contract.topics import LABELS, topic_name
from streams.fleet.wording import counted

AT_ONCE = 500  # labels of a message
NUMBERS = ("seq", "time_us", "known_us")

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def _group() -> None:
    """Labels that other systems know."""


@app.command("import")
def import_(
    task: TaskArgument,
    file: Annotated[Path, typer.Argument(metavar="FILE.csv", exists=True, dir_okay=False)],
    state: State = DEFAULT_STATE,
    kafka: Kafka = None,
    json: AsJson = False,
) -> None:
    """Send labels of a CSV file to the topic `labels`: workers store them, and devices learn from
    those of events that they have sent.

    The first line names the columns: device, label, one of event_id, time, time_us, or epoch and
    seq, and perhaps known or known_us, when the label became known. Nothing is sent if a line is
    wrong. A file that is imported again changes nothing that is read.
    """
    from streams.kafka.producer import Producer

    loaded = load_task(task)
    found: dict[str, list[bytes]] = {}
    with file.open(newline="", encoding="utf-8-sig") as lines:
        for device, label in _labels(loaded, csv.DictReader(lines)):
            found.setdefault(device, []).append(label)
    with closing(Producer(broker_of(state, kafka))) as producer:
        for device, labels in found.items():
            for at in range(0, len(labels), AT_ONCE):
                value = b"[" + b",".join(labels[at : at + AT_ONCE]) + b"]"
                producer.put(topic_name(loaded.id, LABELS), device.encode(), value)
    count = sum(map(len, found.values()))
    if json:
        print_json({"labels": count, "devices": len(found)})
        return
    say(f"{counted(count, 'label')} of {counted(len(found), 'device')} sent")


def _labels(task: Task, rows: "csv.DictReader[str]") -> Iterator[tuple[str, bytes]]:
    """Yield device and label of each line; raise UsageError for the first that is wrong."""
    if unknown := set(rows.fieldnames or ()) - set(KnownLabel.__struct_fields__):
        raise UsageError(f"columns are unknown: {', '.join(sorted(unknown))}")
    for row in rows:
        try:
            fields = {name: _value(task, name, text) for name, text in row.items() if text}
            value = encoded(fields)
            [(device, _)] = decode_known_labels(task, None, value)
        except (MalformedRecord, ValueError, TypeError, AttributeError) as exc:
            raise UsageError(f"line {rows.line_num}: {exc}") from exc
        yield device, value


def _value(task: Task, name: str, text: str) -> object:
    """Return a cell as JSON has it: a label may be a class's name or a number."""
    if name in NUMBERS:
        return int(text)
    if name != "label" or text in task.classes:
        return text
    try:
        return json.loads(text)
    except ValueError:
        return text
