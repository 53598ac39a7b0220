"""One message of `events` as it arrived, and what it says."""

from collections.abc import Iterable
from dataclasses import dataclass

from streams.contract.errors import MalformedRecord
from streams.contract.events.event_columns import EventColumns
from streams.contract.events.labels import LabelBatch
from streams.contract.events.messages import Drop
from streams.contract.events.records import AGAIN, decode_columns
from streams.contract.task import Task

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
