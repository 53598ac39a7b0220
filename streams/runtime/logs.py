"""The log of a process: a line when a state changes, one a minute while it lasts.

A lasting trouble, such as a broker that is away, makes the Kafka libraries and our own loops report
the same again and again. Of warnings and errors that differ in numbers only, and of all lines of
the libraries, the first one is written, then one a minute with the number of those between; when
they have stopped for a minute, a last line says how many there were. Another line of ours by the
same logger, such as that it is connected again, ends its states: the same trouble after it is a new
one. All other lines are written as they come. `configure` is the one place where a process gets its
handler.

Log files that we write ourselves are rotated (`rotate`).
"""

import logging
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

EVERY_S = 60.0
KINDS = 1000  # of lines that are remembered
LIBRARIES = frozenset({"aiokafka", "faust", "kafka", "mode", "opentelemetry"})
FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
LOG_BYTES, OLD_LOGS = 10_000_000, 2  # of one log file; older ones that are kept

# Figures of our own lines stand alone: 0.93, 120 s; names such as pump-3 or 3-1f2e3d4c are none.
_FIGURES = re.compile(r"(?<![\w.-])\d+(\.\d+)?(?![\w-])")
_ANY_NUMBER = re.compile(r"0x[0-9a-f]+|\d+(\.\d+)?")

Kind = tuple[str, int, str]


@dataclass
class _Lasting:
    """A state that lasts: when its last line was written and the last one came, and how many came
    between."""

    record: logging.LogRecord
    written: float
    came: float
    left_out: int = 0


class Repeats:
    """Decides which lines are written. `clock` in seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lasting: dict[Kind, _Lasting] = {}

    def lines(self, record: logging.LogRecord) -> Iterator[logging.LogRecord]:
        """Yield what must be written now that `record` has come: last lines of what is over, and
        the record itself unless it only repeats."""
        now = self._clock()
        yield from self.over(now)
        library = record.name.partition(".")[0] in LIBRARIES
        if record.levelno < logging.WARNING and not library:
            for kind in [kind for kind in self._lasting if kind[0] == record.name]:
                yield from self._forget(kind, now)
            yield record
            return
        numbers = _ANY_NUMBER if library else _FIGURES
        kind = record.name, record.levelno, numbers.sub("#", record.getMessage())
        state = self._lasting.get(kind)
        if state is None:
            self._lasting[kind] = _Lasting(record, now, now)
            if len(self._lasting) > KINDS:
                yield from self._forget(next(iter(self._lasting)), now)
            yield record
            return
        state.record, state.came = record, now
        if now - state.written < EVERY_S:
            state.left_out += 1
            return
        note = f"{state.left_out} more like this in {now - state.written:.0f} s"
        yield _with_note(record, note) if state.left_out else record
        state.written, state.left_out = now, 0

    def over(self, now: float) -> Iterator[logging.LogRecord]:
        """Yield the last lines of states of which nothing has come for EVERY_S."""
        for kind, state in list(self._lasting.items()):
            if now - state.came >= EVERY_S:
                yield from self._forget(kind, now)

    def _forget(self, kind: Kind, now: float) -> Iterator[logging.LogRecord]:
        state = self._lasting.pop(kind)
        if state.left_out:
            since, ago = state.came - state.written, now - state.came
            note = f"{state.left_out} more like this in {since:.0f} s"
            yield _with_note(state.record, f"{note}, the last one {ago:.0f} s ago")

    def end(self) -> Iterator[logging.LogRecord]:
        """Yield the last lines of all states: the process ends."""
        for kind in list(self._lasting):
            yield from self._forget(kind, self._clock())


def _with_note(record: logging.LogRecord, note: str) -> logging.LogRecord:
    made = logging.makeLogRecord(record.__dict__)
    made.msg = f"{record.getMessage()} ({note})"
    made.args = made.exc_info = made.exc_text = None
    return made


class Handler(logging.StreamHandler[TextIO]):
    """Writes to standard error what `Repeats` lets through."""

    def __init__(
        self, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__(stream)
        self._repeats = Repeats(clock)
        self.setFormatter(logging.Formatter(FORMAT))

    def emit(self, record: logging.LogRecord) -> None:
        try:
            lines = list(self._repeats.lines(record))
        except Exception:
            self.handleError(record)  # as for a record whose arguments do not fit
            return
        for line in lines:
            super().emit(line)

    def close(self) -> None:
        """Write what is left to say; called when the process ends."""
        for line in self._repeats.end():
            super().emit(line)
        super().close()


def configure(level: str = "INFO") -> None:
    """Let all loggers of this process write to standard error, as above."""
    logging.basicConfig(level=level, handlers=[Handler()])


def rotate(path: Path, largest: int = LOG_BYTES, kept: int = OLD_LOGS) -> bool:
    """Move what is in a log file to <path>.1 and so on if it is larger; return whether it was.

    The file itself stays: processes that append to it go on. A line that is written while it is
    emptied may be lost.
    """
    try:
        if path.stat().st_size <= largest:
            return False
    except FileNotFoundError:
        return False
    for number in range(kept, 1, -1):
        older = path.with_name(f"{path.name}.{number - 1}")
        if older.exists():
            older.replace(path.with_name(f"{path.name}.{number}"))
    with path.open("r+b") as log, path.with_name(f"{path.name}.1").open("wb") as old:
        shutil.copyfileobj(log, old)
        log.truncate(0)
    return True
