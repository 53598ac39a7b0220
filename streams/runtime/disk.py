"""Atomic file writes: after a crash a file has its old or its new content, never a mix.

A process that is killed leaves its temporary file, `.NAME.PID.NUMBER.tmp`. The next write into the
folder that comes LEFT_S later, by whichever process, removes it. Its age decides, not its process:
that may be one of another container, or have the number of a dead one.
"""

import itertools
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

LEFT_S = 3600.0  # a write takes seconds
_TEMPORARY = re.compile(r"\..+\.\d+\.\d+\.tmp")
_numbers = itertools.count()  # several threads may write one file
_looked: dict[Path, float] = {}  # when a folder was searched for what is left


def cache_folder() -> Path:
    """Return the folder of data sets and first models: TIDEWHEEL_CACHE or the user's cache."""
    if named := os.environ.get("TIDEWHEEL_CACHE"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tidewheel"


def sync_directory(path: Path) -> None:
    """Make created, renamed and removed files of a folder durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_atomic(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Replace `path` with `data`: temporary file, fsync, rename, fsync of the folder."""
    with replacing(path, mode=mode) as file:
        file.write(data)


@contextmanager
def replacing(path: Path, *, mode: int = 0o644) -> Iterator[IO[bytes]]:
    """Replace `path` as `write_atomic`, in several writes. An exception keeps the old content."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_left(path.parent, time.time())
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{next(_numbers)}.tmp")
    try:
        with open(temporary, "wb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    temporary.replace(path)
    sync_directory(path.parent)


def _remove_left(folder: Path, now: float) -> None:
    """Remove temporary files that crashes have left; look once in LEFT_S."""
    if abs(now - _looked.get(folder, 0.0)) < LEFT_S:
        return
    for old in [each for each, at in list(_looked.items()) if abs(now - at) >= LEFT_S]:
        _looked.pop(old, None)
    _looked[folder] = now
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if _TEMPORARY.fullmatch(entry.name) and now - entry.stat().st_mtime > LEFT_S:
                Path(entry).unlink()


def write_all(fd: int, data: bytes) -> None:
    """Write all of `data`: on a full disk `os.write` returns a short count without an error."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
