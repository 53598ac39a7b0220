"""Dead letters: list, show, and send again.

A dead letter is identified by its offset on `dead-letters` (that of its first part, if it was
split). Replaying puts the original key, value and headers on its topic with the header `again`: the
worker tries refused events once more. Events stored meanwhile are not stored twice, and events that
were counted as dropped then count as scored. What is refused again is another dead letter, which
says in its headers of which one it is the copy.
"""

from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass

from rich.console import Console

from compose.reports.terminal import table
from streams.contract.documents import Document
from streams.contract.errors import UsageError
from streams.contract.events.messages import SEQ_REUSED, Headers
from streams.contract.events.records import AGAIN
from streams.contract.topics import DEAD_LETTERS, EVENTS, LABELS, topic_name
from streams.fleet.wording import counted
from streams.kafka.producer import Producer
from streams.kafka.reader import Reader, Received
from streams.kafka.settings import BrokerSettings

PREFIX = "original-"


@dataclass(frozen=True)
class DeadLetter:
    """One dead letter, its parts joined. `source` is topic/partition/offset."""

    offset: int
    key: bytes | None
    value: bytes
    reason: str
    detail: str
    source: str
    headers: Headers
    whole: bool

    @property
    def copy_of(self) -> str:
        """The offset of the dead letter that was sent again and refused again; "" for others."""
        return dict(self.headers).get(AGAIN, b"").decode(errors="replace")


def read_letters(settings: BrokerSettings, task: str) -> list[DeadLetter]:
    """Return all dead letters on the topic, oldest first."""
    with closing(Reader(settings, [topic_name(task, DEAD_LETTERS)])) as reader:
        return join_parts(reader.read_to_end())


def join_parts(messages: Iterable[Received]) -> list[DeadLetter]:
    """Return the dead letters of messages, by offset. The parts of one follow each other with the
    same source and count. What a worker wrote again after a crash is the first one, and so is what
    was refused again of one that was sent twice."""
    letters: list[DeadLetter] = []
    parts: dict[tuple[str, str], list[Received]] = {}
    for message in messages:
        fields = {name: text.decode(errors="replace") for name, text in message.headers}
        part = fields.get("part")
        names = ("source-topic", "source-partition", "source-offset")
        source = "/".join(fields.get(name, "?") for name in names)
        if part is None:
            letters.append(_letter([message], fields, source, whole=True))
            continue
        index, _, count = part.partition("/")
        key = source, count
        if index == "0":
            parts[key] = []
        parts.setdefault(key, []).append(message)
        if str(len(parts[key])) == count:
            letters.append(_letter(parts.pop(key), fields, source, whole=True))
    for (source, _), rest in parts.items():
        fields = {name: text.decode(errors="replace") for name, text in rest[0].headers}
        letters.append(_letter(rest, fields, source, whole=False))
    letters.sort(key=lambda letter: -letter.offset)
    once = {_identity(letter): letter for letter in letters}
    return sorted(once.values(), key=lambda letter: letter.offset)


def _identity(letter: DeadLetter) -> tuple[object, ...]:
    """Return what a letter has in common with the same one written again, which needs a source."""
    source = letter.offset if "?" in letter.source.split("/") else letter.source
    return letter.copy_of or source, letter.reason, letter.value


def _letter(
    messages: list[Received], fields: dict[str, str], source: str, *, whole: bool
) -> DeadLetter:
    headers = messages[0].headers
    return DeadLetter(
        offset=messages[0].offset,
        key=messages[0].key,
        value=b"".join(message.value or b"" for message in messages),
        reason=fields.get("reason", "?"),
        detail=fields.get("detail", ""),
        source=source,
        headers=[(n.removeprefix(PREFIX), v) for n, v in headers if n.startswith(PREFIX)],
        whole=whole,
    )


def find(letters: list[DeadLetter], offset: int) -> DeadLetter:
    """Return the dead letter at an offset; raise UsageError if there is none."""
    for letter in letters:
        if letter.offset == offset:
            return letter
    raise UsageError(f"no dead letter at offset {offset}: see `tidewheel dead-letters`")


def without_copied(letters: list[DeadLetter]) -> list[DeadLetter]:
    """Leave out what was sent again and refused again: a newer letter has its events."""
    copied = {(letter.copy_of, letter.key) for letter in letters}
    return [letter for letter in letters if (str(letter.offset), letter.key) not in copied]


def replay(settings: BrokerSettings, task: str, letters: Iterable[DeadLetter]) -> int:
    """Send dead letters to where they came from again, in order; return how many. Raise UsageError
    for one that would be taken for a repeat."""
    letters, sent = list(letters), 0
    if reused := [letter.offset for letter in letters if letter.reason == SEQ_REUSED]:
        raise UsageError(
            f"the dead letter at offset {reused[0]} cannot be sent again: other events have its "
            "numbers; have its producer send its events in a new epoch"
        )
    with closing(Producer(settings)) as producer:
        for letter in letters:
            if not letter.whole:
                raise UsageError(f"the dead letter at offset {letter.offset} lacks a part")
            kept = [header for header in letter.headers if header[0] != AGAIN]
            headers = [*kept, (AGAIN, str(letter.offset).encode())]
            of = LABELS if letter.source.startswith(f"{topic_name(task, LABELS)}/") else EVENTS
            producer.put(topic_name(task, of), letter.key, letter.value, headers)
            sent += 1
    return sent


def place(source: str) -> str:
    """Return where a letter's message is, for a person."""
    topic, partition, offset = source.split("/")
    return f"{topic.rpartition('.')[2]}, partition {partition}, offset {offset}"


class LetterReport(Document):
    """A dead letter as `dead-letters --json` prints it; headers: the message's."""

    offset: int
    reason: str
    detail: str
    source: str
    key: str | None
    bytes: int
    headers: dict[str, str]
    whole: bool


def report_of(letter: DeadLetter) -> LetterReport:
    return LetterReport(
        offset=letter.offset,
        reason=letter.reason,
        detail=letter.detail,
        source=letter.source,
        key=None if letter.key is None else letter.key.decode(errors="replace"),
        bytes=len(letter.value),
        headers={name: value.decode(errors="replace") for name, value in letter.headers},
        whole=letter.whole,
    )


def reports_of(letters: Iterable[DeadLetter]) -> list[LetterReport]:
    return [report_of(letter) for letter in letters]


def print_letters(letters: list[DeadLetter], console: Console) -> None:
    columns = ("offset", "reason", "key", "message", "bytes", "detail")
    rows = [(str(x.offset), x.reason, x.key or "", place(x.source), str(x.bytes), x.detail)
            for x in reports_of(letters)]  # fmt: skip
    console.print(table(counted(len(letters), "dead letter"), columns, rows))


def print_letter(letter: DeadLetter, console: Console) -> None:
    report = report_of(letter)
    lines = [f"{name:10} {value}" for name, value in report.fields().items() if name != "headers"]
    lines += [f"  {name:10} {text}" for name, text in report.headers.items()]
    for line in (*lines, f"value      {letter.value[:200]!r}"):
        console.print(line, markup=False, highlight=False)
