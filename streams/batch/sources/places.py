"""Where files are, as fsspec has them: local paths, and URLs (`s3://bucket/prefix`, ...).

The only module of batch scoring that knows fsspec. What its implementations raise becomes OSError.
"""

import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from streams.contract.errors import TidewheelError, UsageError, line_of
from streams.contract.task.extensions import extensions

Stamp = tuple[int, str]  # bytes, and what changes with the content
BUFFER_BYTES = 1_000_000
BUCKETS = ("s3", "s3a", "gs", "gcs")  # protocols whose first word names what has to exist
TAGS = ("ETag", "etag")  # in a bucket another one with other content; a web server's may be a time
TIMES = (*TAGS, "mtime", "LastModified", "last_modified", "updated", "created")
ONLY_TIME = "at "  # begins a stamp that two contents may share


def is_url(text: str) -> bool:
    return "://" in text


def suffix_of(path: str) -> str:
    """Return the suffix of a path or URL, as `.parquet`."""
    return PurePosixPath(path.partition("?")[0]).suffix.lower()


def open_binary(path: str) -> io.BufferedReader:
    """Open a local file or a URL for reading; raise OSError."""
    if not is_url(path):
        return Path(path).open("rb")
    with store_of(path) as (files, inside):
        return io.BufferedReader(_Remote(path, files.open(inside, "rb")), BUFFER_BYTES)


def stamp_of(name: str, path: str) -> Stamp:
    """Return what a change of a file changes; raise TidewheelError if it is gone. Of a local file
    it has the time of the last change of any kind (`st_ctime`), which no program can set; a file
    that a program keeps mapped (mmap) may change for some seconds without it."""
    try:
        if not is_url(path):
            at = Path(path).stat()
            return at.st_size, f"{at.st_mtime_ns} {at.st_ctime_ns} {at.st_dev} {at.st_ino}"
        with store_of(path) as (files, inside):
            about = files.info(inside)
    except OSError as exc:
        raise TidewheelError(f"{name} cannot be read: {exc.strerror or exc}") from exc
    size, known = int(about["size"] or 0), {k: v for k, v in about.items() if v is not None}
    tag = next((str(known[key]) for key in TAGS if key in known), "")
    if tag and path.partition("://")[0] in BUCKETS:
        return size, tag
    return size, ONLY_TIME + next((str(known[key]) for key in TIMES if key in known), "")


def find(text: str, fits: Callable[[str], bool]) -> Iterator[tuple[str, str]]:
    """Yield name and path of the files that a path, folder, glob or URL stands for; `fits` decides
    by the path, but for a file that is named itself."""
    try:
        with store_of(text) as (files, inside):
            for found in _found(files, inside, fits):
                if is_url(text):
                    url = files.unstrip_protocol(found)
                    yield url, url
                else:
                    name = found if Path(text).is_absolute() else os.path.relpath(found)
                    yield name, os.path.realpath(found)
    except FileNotFoundError:
        return
    except OSError as exc:
        raise UsageError(f"{text} cannot be read: {exc}") from exc


def _found(files: Any, inside: str, fits: Callable[[str], bool]) -> Iterator[str]:
    if files.isfile(inside):
        yield inside
        return
    for root in sorted(files.glob(inside)) if set("*?[") & set(inside) else [inside]:
        if files.isfile(root):
            if fits(root):
                yield root
            continue
        for path in sorted(files.find(root)):
            if fits(path) and _shown(PurePosixPath(path).relative_to(PurePosixPath(root))):
                yield path


def _shown(path: PurePosixPath) -> bool:
    return not any(part[0] in "._" for part in path.parts)


def holds(folder: str, name: str) -> bool:
    """Return whether a folder, local or a URL, has an entry `name`."""
    try:
        with store_of(folder) as (files, inside):
            return bool(files.exists(f"{inside.rstrip('/')}/{name}"))
    except OSError as exc:
        raise UsageError(f"{folder} cannot be read: {exc}") from exc


def is_taken(url: str) -> bool:
    """Return whether there are objects under a URL, or one of this name; raise UsageError if that
    cannot be asked."""
    try:
        with store_of(url) as (files, inside):
            root = inside.partition("/")[0]
            if url.partition("://")[0] in BUCKETS and not files.exists(root):
                raise UsageError(f"{url}: there is no bucket {root!r}")
            return bool(files.find(inside))
    except FileNotFoundError:
        return False
    except OSError as exc:
        raise UsageError(f"{url} cannot be read: {exc}") from exc


def put(content: Path, url: str) -> None:
    """Replace an object by a local file; raise OSError."""
    with store_of(url) as (files, inside):
        files.put_file(str(content), inside)
        files.invalidate_cache()
        if (there := files.info(inside)["size"]) != (wanted := content.stat().st_size):
            raise OSError(f"{url} has {there} bytes, {wanted} were written")


@contextmanager
def store_of(url: str) -> Iterator[tuple[Any, str]]:
    """Yield fsspec's file system of a URL as it is now, and the path in it; raise UsageError
    without one, and OSError for what it raises."""
    try:
        import fsspec

        files, inside = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as exc:
        advice = "install what fsspec needs for it, as s3fs for s3:// (tidewheel[batch,s3])"
        if isinstance(exc, ValueError) and (added := ", ".join(sorted(extensions("sinks")))):
            advice += f"; packages add these sinks for --to: {added}"
        raise UsageError(f"{url} cannot be opened: {exc}: {advice}") from exc
    try:
        files.invalidate_cache()
        yield files, str(inside)
    except (OSError, TidewheelError):
        raise
    except Exception as exc:  # each implementation has its own
        raise OSError(f"{url}: {line_of(exc)}") from exc


class _Remote(io.RawIOBase):
    """A file of fsspec whose errors are OSErrors."""

    def __init__(self, url: str, file: Any) -> None:
        self._url, self._file = url, file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with store_of(self._url):
            data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = 0, /) -> int:
        return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()
