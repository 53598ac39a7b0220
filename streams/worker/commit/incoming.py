"""One message of `events` as it arrived, what it says, and dead letters: what could not be
understood, believed or scored, whole, with the reason. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass

from streams.contract.errors import MalformedRecord
from streams.contract.events.event_columns import EventColumns
from streams.contract.events.labels import LabelBatch
from streams.contract.events.messages import Drop, Headers
from streams.contract.events.records import AGAIN, EventBatch, decode_columns, encode_events
from streams.contract.task import Task
from streams.contract.topics import DEAD_LETTERS, EVENTS, topic_name
from streams.worker.commit.publications import Outgoing
from streams.worker.windows.tumbling import WindowSlice

PART_BYTES = 800_000  # leaves room for the headers under the brokers' limit
HEADER_BYTES = 1_000
HEADERS = 32
NO_FORM = ("no-header", "unknown-schema", "not-arrow")
JSON = (
    "the value looks like JSON; `events` takes Arrow. Readings as JSON go to `tidewheel edge run` "
    "with --source stdin or mqtt://HOST:PORT/TOPIC"
)


@dataclass(frozen=True)
class Incoming:
    """One message of `events` as it came."""

    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: Iterable[tuple[str, bytes]]


def decode(task: Task, incoming: Incoming) -> EventColumns | Drop | LabelBatch:
    """Return what a message says; whatever is wrong with it is a MalformedRecord."""
    try:
        headers = {name: text if text is not None else b"" for name, text in incoming.headers}
        return decode_columns(task, incoming.key, incoming.value, headers)
    except MalformedRecord as exc:
        if exc.reason in NO_FORM and (incoming.value or b"").lstrip()[:1] in (b"{", b"["):
            raise MalformedRecord(exc.reason, f"{str(exc).partition(': ')[2]}; {JSON}") from exc
        raise
    except Exception as exc:  # bytes from anyone: no library's surprise may end the worker
        detail = f"{type(exc).__name__}: {exc}"[:200]
        raise MalformedRecord("undecodable", detail) from exc


def is_sent_again(incoming: Incoming) -> bool:
    """Whether the message is a dead letter that was sent to `events` again."""
    return any(name == AGAIN for name, _ in incoming.headers)


def dead_letters_of(task: Task, incoming: Incoming, error: MalformedRecord) -> list[Outgoing]:
    """The dead letters of a malformed message: one, or several parts of one too long."""
    headers = _headers(task, error.reason, str(error), incoming.partition, incoming.offset)
    original = [(f"original-{name}"[:200], text) for name, text in incoming.headers]
    kept = [(name, (text or b"")[:HEADER_BYTES]) for name, text in original[:HEADERS]]
    key = None if incoming.key is None else incoming.key[:HEADER_BYTES]
    return _letters(task, key, incoming.value or b"", headers + kept)


def refused_letters(
    task: Task, partition: int, piece: WindowSlice, reason: str, detail: str
) -> list[Outgoing]:
    """The dead letters of events that are refused, as an events/2 message."""
    found = piece.events
    events = EventBatch(found.device, found.epoch, found.first, found.rows)
    key, value, original = encode_events(events)
    headers = _headers(task, reason, detail, partition, piece.message.offset)
    kept = [(f"original-{name}", text) for name, text in original]
    return _letters(task, key, value, headers + kept)


def _headers(task: Task, reason: str, detail: str, partition: int, offset: int) -> Headers:
    return [
        ("reason", reason.encode()),
        ("detail", detail.encode(errors="replace")[:HEADER_BYTES]),
        ("source-topic", topic_name(task.id, EVENTS).encode()),
        ("source-partition", str(partition).encode()),
        ("source-offset", str(offset).encode()),
    ]


def _letters(task: Task, key: bytes | None, value: bytes, headers: Headers) -> list[Outgoing]:
    topic = topic_name(task.id, DEAD_LETTERS)  # which has one partition
    parts = [value[at : at + PART_BYTES] for at in range(0, max(len(value), 1), PART_BYTES)]
    if len(parts) == 1:
        return [Outgoing(topic, 0, key, value, headers)]
    return [
        Outgoing(topic, 0, key, part, [*headers, ("part", f"{i}/{len(parts)}".encode())])
        for i, part in enumerate(parts)
    ]
