"""The decisions about a task's models, from the topic `releases`, or from the registry without a
broker or with --offline."""

import json
import sys
from collections.abc import Callable, Iterable, Iterator

from rich.console import Console
from rich.table import Table

from compose.reports.terminal import moment, print_json
from federation.registry.catalog import describe_decision
from federation.registry.registry import Registry
from streams.contract.decisions import Decision, Release
from streams.contract.errors import BrokerUnavailable, MalformedRecord
from streams.contract.task import Task
from streams.contract.topics import RELEASES, topic_name
from streams.fleet.wording import counted, short_runs
from streams.kafka.reader import Reader, Received
from streams.kafka.settings import BrokerSettings

CONNECT_S = 2.0  # a person waits


def decisions_of(messages: Iterable[Received]) -> list[Decision]:
    """Return the readable decisions by number, without verifying signatures."""
    found: dict[int, Decision] = {}
    for message in messages:
        try:
            decision = Release.decode(message.value).decision
        except MalformedRecord:
            continue
        found[decision.seq] = decision
    return [found[seq] for seq in sorted(found)]


def read_decisions(
    task: Task, broker: BrokerSettings | None, registry: Callable[[], Registry]
) -> list[Decision]:
    """Return the decisions from Kafka, or from the registry; a missing broker is reported."""
    if broker is not None:
        try:
            reader = Reader(broker, [topic_name(task.name, RELEASES)], timeout_s=CONNECT_S)
            try:
                return decisions_of(reader.read_to_end())
            finally:
                reader.close()
        except BrokerUnavailable as exc:
            kept = registry()
            print(f"tidewheel: {exc}; read from {kept.where}", file=sys.stderr)  # noqa: T201
            return kept.decisions()
    return registry().decisions()


def follow(task: Task, broker: BrokerSettings) -> Iterator[Decision]:
    """Yield all decisions on `releases`, then new ones as they come, each once."""
    reader, seen = Reader(broker, [topic_name(task.name, RELEASES)], timeout_s=CONNECT_S), set()
    try:
        for decision in decisions_of(reader.read_to_end()):
            seen.add((decision.seq, decision.prev, decision.time_us))
            yield decision
        while True:
            for decision in decisions_of(reader.poll(0.5)):
                identity = decision.seq, decision.prev, decision.time_us
                if identity not in seen:
                    seen.add(identity)
                    yield decision
    finally:
        reader.close()


def print_decisions(task: str, found: list[Decision], console: Console, *, as_json: bool) -> None:
    if as_json:
        decisions = [describe_decision(d) for d in found]
        print_json({"task": task, "decisions": decisions}, console)
        return
    table = Table(title=f"{task}: {counted(len(found), 'decision')}")
    table.add_column("no.", justify="right")
    for name in ("when", "kind", "model"):
        table.add_column(name, no_wrap=True)
    table.add_column("reason")
    for decision in found:
        table.add_row(
            str(decision.seq),
            moment(decision.time_us),
            decision.kind,
            decision.model or "-",
            short_runs(decision.reason),
        )
    console.print(table)


def print_decision(decision: Decision, console: Console, *, as_json: bool) -> None:
    """Print one line."""
    if as_json:
        line = json.dumps(describe_decision(decision))
    else:
        about = f"{decision.seq} {decision.kind} {decision.model or '-'}"
        line = short_runs(f"{moment(decision.time_us)} {about}: {decision.reason}")
    console.print(line, markup=False, highlight=False, soft_wrap=True)
