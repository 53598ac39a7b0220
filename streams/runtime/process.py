"""A process: its log, Ctrl-C and SIGTERM for a command that has things to take down, the end of the
process that started this one, its own end when it cannot go on, and memory that only its start
needs.

While a command makes something ready a signal breaks that off where it stands, by an exception.
Python swallows an exception that is raised while a destructor or a weak reference's callback runs,
so long operations call `check` at each step. Once `patient`, a signal sets flags alone.

A handler runs on the main thread wherever that is, perhaps with a lock in its hands: what takes the
same lock, such as `set` of the event that the thread waits for, would never return (`by_thread`).

**Log**: a line when a state changes, one a minute while it lasts. A lasting trouble, such as a
broker that is away, makes the Kafka libraries and our own loops report the same again and again. Of
warnings and errors that differ in numbers only, and of all lines of the libraries, the first one is
written, then one a minute with the number of those between. Another line of ours by the same
logger, such as that it is connected again, ends its states: the same trouble after it is a new one.
All other lines are written as they come. `configure_logging` is the one place where a process gets
its handler. Log files that we write ourselves are rotated (`rotate`).
"""

import _thread
import contextlib
import ctypes
import logging
import math
import os
import re
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import NoReturn, Self, TextIO


def by_thread(act: Callable[[], object]) -> Callable[[int, object], None]:
    """Return a signal's handler that has another thread call `act`, which may take locks."""

    def handle(_number: int, _frame: object) -> None:
        _thread.start_new_thread(act, ())  # threading.Thread takes locks itself

    return handle


class Interrupted(BaseException):
    """Ctrl-C or SIGTERM while something is being made ready."""


class Interrupts:
    """Handles the two signals inside its `with`. `stop` is set soon after the first one; `seen`
    counts."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        self.seen = 0
        self.patient = False

    def check(self) -> None:
        """Raise Interrupted if a signal has come before the command was `patient`."""
        if self.seen and not self.patient:
            raise Interrupted

    def __enter__(self) -> Self:
        numbers = (signal.SIGINT, signal.SIGTERM)
        self._before = {n: signal.signal(n, self._handle) for n in numbers}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: object) -> None:
        self.seen += 1
        by_thread(self.stop.set)(number, frame)
        if self.seen == 1 and not self.patient:
            raise Interrupted


PR_SET_PDEATHSIG = 1


def end_with_parent(parent: int) -> bool:
    """Let this process be killed when its parent ends (Linux); return False if that has ended."""
    if sys.platform != "linux":
        return True
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    return os.getppid() == parent


# --- memory that only a start needs ---------------------------------------------------------------

# A start touches most of the libraries' files once: relocations, tables of operators and functions,
# initializers. Linux counts these pages as resident as long as they are mapped, although an agent
# that answers uses a quarter of them.
MADV_DONTNEED = 4  # mman.h

SMAPS = Path("/proc/self/smaps")


def give_back() -> None:
    """Give the kernel the pages of files that were only read so far; one that is needed again comes
    from the page cache.

    Nothing is done beside other threads: one that loads a library would lose what it has written
    there since the pages were found to be unwritten.
    """
    if threading.active_count() > 1:
        return
    with contextlib.suppress(OSError, AttributeError):  # another C library, another kernel
        library = ctypes.CDLL(None)
        library.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        for begin, end in unwritten(SMAPS.read_text().splitlines()):
            library.madvise(begin, end - begin, MADV_DONTNEED)


def trim() -> None:
    """Give the kernel what the heap has free, some 20 microseconds; glibc itself gives back the end
    alone."""
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def unwritten(smaps: Iterable[str]) -> Iterator[tuple[int, int]]:
    """Yield begin and end of each private mapping of a file that is readable only and of which no
    page was written, in memory or swapped out, from the lines of /proc/PID/smaps."""
    place: tuple[int, int] | None = None
    for line in smaps:
        words = line.split()
        if not words[0].endswith(":"):  # the first line of a mapping
            if place is not None:
                yield place
            begin, _, end = words[0].partition("-")
            kept = words[1] in ("r--p", "r-xp") and words[4] != "0"
            place = (int(begin, 16), int(end, 16)) if kept else None
        elif words[0] in ("Anonymous:", "Swap:") and words[1] != "0":
            place = None
    if place is not None:
        yield place


# --- the end of a process that cannot go on -------------------------------------------------------


def show_threads() -> None:
    """Write the stacks of all threads to standard error, if there is one.

    For a thread of Python's: it holds the interpreter meanwhile. What `faulthandler.register` does
    in the signal itself reads the frames of threads that run, and has ended an agent with SIGSEGV.
    """
    with contextlib.suppress(OSError, ValueError, RuntimeError):
        import faulthandler

        faulthandler.dump_traceback(all_threads=True)


END_S = 5.0  # for the log's line


def _end_now() -> NoReturn:
    show_threads()
    os._exit(1)


def end_process(log: logging.Logger, text: str, failure: BaseException | None = None) -> NoReturn:
    """Exit with 1 at once, after a line in the log, the failure's trace, and the stacks of all
    threads: the supervisor starts the process again, and the spool has all events."""
    threading.Timer(END_S, _end_now).start()  # what hangs may have the log's lock
    log.critical("%s; the stacks of all threads follow", text, exc_info=failure)
    logging.shutdown()
    _end_now()


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


def configure_logging(level: str = "INFO") -> None:
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
