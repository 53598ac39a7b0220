"""Memory that only a start needs is given back.

A start touches most of the libraries' files once: relocations, tables of operators and functions,
initializers. Linux counts these pages as resident as long as they are mapped, although an agent
that answers uses a quarter of them.
"""

import contextlib
import ctypes
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

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
