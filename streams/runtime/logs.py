"""The log of a process: a line when a state changes, one a minute while it lasts.

A lasting trouble, such as a broker that is away, makes the Kafka libraries and our own loops report
the same again and again. Of warnings and errors that differ in numbers only, and of all lines of
the libraries, the first one is written, then one a minute with the number of those between. Another
line of ours by the same logger, such as that it is connected again, ends its states: the same
trouble after it is a new one. All other lines are written as they come. `configure` is the one
place where a process gets its handler.

Log files that we write ourselves are rotated (`rotate`).
"""

import logging
import math
import re
import shutil
import time
from collections.abc import Callable
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


class Repeats(logging.Filter):
    """Lets through what is to be written. `clock` in seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        # by logger, level and text: when a line was written, and how many were left out since
        self._lasting: dict[tuple[str, int, str], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        library = record.name.partition(".")[0] in LIBRARIES
        if record.levelno < logging.WARNING and not library:
            kept = {k: state for k, state in self._lasting.items() if k[0] != record.name}
            self._lasting = kept
            return True
        try:
            text = record.getMessage()
        except Exception:  # arguments that do not fit: the handler reports them
            return True
        numbers, now = _ANY_NUMBER if library else _FIGURES, self._clock()
        kind = record.name, record.levelno, numbers.sub("#", text)
        written, left_out = self._lasting.pop(kind, (-math.inf, 0))
        if now - written < EVERY_S:
            self._lasting[kind] = written, left_out + 1
            return False
        if left_out:
            record.msg = f"{text} ({left_out} more like this in {now - written:.0f} s)"
            record.args = record.exc_info = record.exc_text = None
        self._lasting[kind] = now, 0
        if len(self._lasting) > KINDS:
            del self._lasting[next(iter(self._lasting))]
        return True


def handler(
    stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic
) -> logging.Handler:
    """Return what writes to standard error, or `stream`, without repetitions."""
    made = logging.StreamHandler(stream)
    made.setFormatter(logging.Formatter(FORMAT))
    made.addFilter(Repeats(clock))
    return made


def configure(level: str = "INFO") -> None:
    """Let all loggers of this process write to standard error, as above."""
    logging.basicConfig(level=level, handlers=[handler()])


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
