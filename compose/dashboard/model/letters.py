"""The newest dead letters, as messages of the topic and as documents. Pure."""

from collections import Counter, deque
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic import BaseModel

from compose.reports.dead_letters import DeadLetter, join_parts, to_json
from streams.contract.task import Task
from streams.contract.topics import EVENTS
from streams.kafka.readable import rows_of
from streams.kafka.reader import Received

KEPT, HEAD, ROWS = 200, 4096, 3
HEADERS, HEADER = 40, 1000  # of a letter, and bytes of each


@dataclass
class Letters:
    """The newest KEPT messages of `dead-letters`, each cut at HEAD bytes. counts: letters by their
    reason since the console began to read, those of the last KEPT at its start included."""

    messages: deque[Received] = field(default_factory=lambda: deque(maxlen=KEPT))
    sizes: dict[int, int] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)

    def add(self, message: Received) -> None:
        fields = dict(message.headers)
        if not fields.get("part", b"0/").startswith(b"0/"):
            return  # a later part of the letter before
        value = message.value or b""
        headers = [(name[:HEADER], text[:HEADER]) for name, text in message.headers[:HEADERS]]
        self.messages.append(replace(message, value=value[:HEAD], headers=headers))
        self.sizes[message.offset] = len(value)
        reason = fields.get("reason", b"?").decode(errors="replace")[:60]
        if reason in self.counts or len(self.counts) < 50:
            self.counts[reason] += 1
        if len(self.sizes) > KEPT:
            self.sizes = {m.offset: self.sizes[m.offset] for m in self.messages}

    @property
    def newest(self) -> list[DeadLetter]:
        """Newest first; without the end of a long value."""
        whole = [
            replace(m, headers=[h for h in m.headers if h[0] != "part"]) for m in self.messages
        ]
        return join_parts(whole)[::-1]


class LetterRow(BaseModel):
    """A letter in the list; `at_us` is when the worker sent it."""

    offset: int
    at_us: int
    reason: str
    detail: str
    source: str
    key: str
    bytes: int


class LetterDetail(BaseModel):
    """A letter, and what can be read of it. head: the beginning of its value, escaped; rows: the
    first rows of events where they can be decoded, or why not."""

    letter: LetterRow
    headers: dict[str, str]
    head: str
    rows: list[dict[str, Any]]


class Quality(BaseModel):
    """Newest first. unreadable: messages of other topics that could not be read."""

    by_reason: dict[str, int]
    letters: list[LetterRow]
    unreadable: int


def quality(letters: Letters, unreadable: int) -> Quality:
    times = {m.offset: m.time_ms * 1000 for m in letters.messages}
    rows = [_row(letter, letters, times) for letter in letters.newest]
    return Quality(
        by_reason=dict(letters.counts.most_common()), letters=rows, unreadable=unreadable
    )


def _row(letter: DeadLetter, letters: Letters, times: dict[int, int]) -> LetterRow:
    said = to_json(letter)
    return LetterRow(
        offset=letter.offset,
        at_us=times.get(letter.offset, 0),
        reason=letter.reason,
        detail=letter.detail,
        source=letter.source,
        key=str(said["key"] or ""),
        bytes=letters.sizes.get(letter.offset, len(letter.value)),
    )


def letter_detail(task: Task, letters: Letters, offset: int) -> LetterDetail | None:
    """Return the letter at an offset; None if it is not among the newest."""
    found = next((x for x in letters.newest if x.offset == offset), None)
    if found is None:
        return None
    times = {m.offset: m.time_ms * 1000 for m in letters.messages}
    message = Received("", 0, offset, found.key, found.value, found.headers)
    rows = [{k: _short(v) for k, v in row.items() if k != "at"} for row in
            rows_of(task, EVENTS, message)[:ROWS]]  # fmt: skip
    return LetterDetail(
        letter=_row(found, letters, times),
        headers={name: value.decode(errors="replace") for name, value in found.headers},
        head=repr(found.value[:300])[2:-1],
        rows=rows,
    )


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 200 else f"{text[:200]}…"
