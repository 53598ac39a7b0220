"""Where files are: local paths, and URLs that fsspec opens (`s3://bucket/prefix`, ...).

The only module of batch scoring that knows fsspec. What its implementations raise becomes OSError.
"""

import glob
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from streams.contract.errors import TidewheelError, UsageError

Stamp = tuple[int, str]  # bytes, and what the store changes with the content
BUFFER_BYTES = 1_000_000
MAGIC = frozenset("*?[")
BUCKETS = ("s3", "s3a", "gs", "gcs")  # protocols whose first word names what has to exist
CHANGES = ("ETag", "etag", "mtime", "LastModified", "last_modified", "updated", "created")


def is_url(text: str) -> bool:
    return "://" in text


def suffix_of(path: str) -> str:
    """Return the suffix of a path or URL, as `.parquet`."""
    return PurePosixPath(path.partition("?")[0]).suffix.lower()


def open_binary(path: str) -> io.BufferedReader:
    """Open a local file or a URL for reading; raise OSError."""
    if not is_url(path):
        return Path(path).open("rb")
    with _as_os_errors(path):
        files, inside = opened(path)
        return io.BufferedReader(_Remote(path, files.open(inside, "rb")), BUFFER_BYTES)


def stamp_of(name: str, path: str) -> Stamp:
    """Return what a change of a file changes; raise TidewheelError if it is gone."""
    try:
        if not is_url(path):
            found = Path(path).stat()
            return found.st_size, str(found.st_mtime_ns)
        with _as_os_errors(path):
            files, inside = opened(path)
            files.invalidate_cache()
            about = files.info(inside)
    except OSError as exc:
        raise TidewheelError(f"{name} cannot be read: {exc.strerror or exc}") from exc
    changes = next((about[key] for key in CHANGES if about.get(key) is not None), "")
    return int(about["size"] or 0), str(changes)


def find(text: str, fits: Callable[[str], bool]) -> Iterator[tuple[str, str]]:
    """Yield name and path of the files that a path, folder, glob or URL stands for; `fits` decides
    by the path, but for a file that is named itself."""
    if is_url(text):
        try:
            with _as_os_errors(text):
                yield from _find_remote(text, fits)
        except FileNotFoundError:
            return
        except OSError as exc:
            raise UsageError(f"{text} cannot be read: {exc}") from exc
        return
    for path in _find_local(text, fits):
        yield str(path), str(path.resolve())


def holds(folder: str, name: str) -> bool:
    """Return whether a folder, local or a URL, has an entry `name`."""
    if not is_url(folder):
        return (Path(folder) / name).exists()
    try:
        with _as_os_errors(folder):
            files, inside = opened(folder)
            return bool(files.exists(f"{inside.rstrip('/')}/{name}"))
    except OSError as exc:
        raise UsageError(f"{folder} cannot be read: {exc}") from exc


def is_taken(url: str) -> bool:
    """Return whether there are objects under a URL, or one of this name; raise UsageError if that
    cannot be asked."""
    try:
        with _as_os_errors(url):
            files, inside = opened(url)
            files.invalidate_cache()
            root = inside.partition("/")[0]
            if url.partition("://")[0] in BUCKETS and not files.exists(root):
                raise UsageError(f"{url}: there is no bucket {root!r}")
            return bool(files.find(inside))
    except FileNotFoundError:
        return False
    except OSError as exc:
        raise UsageError(f"{url} cannot be read: {exc}") from exc


def put(path: Path, url: str) -> None:
    """Replace an object by a local file; raise OSError."""
    with _as_os_errors(url):
        files, inside = opened(url)
        files.put_file(str(path), inside)
        files.invalidate_cache()
        if (there := files.info(inside)["size"]) != (wanted := path.stat().st_size):
            raise OSError(f"{url} has {there} bytes, {wanted} were written")


def put_bytes(url: str, data: bytes) -> None:
    """Replace an object; raise OSError."""
    with _as_os_errors(url):
        files, inside = opened(url)
        files.pipe_file(inside, data)


def _find_local(text: str, fits: Callable[[str], bool]) -> Iterator[Path]:
    path = Path(text)
    if path.is_file():
        yield path
        return
    found = glob.glob(text, recursive=True)  # noqa: PTH207 - also of absolute patterns
    roots = [path] if path.is_dir() else [Path(name) for name in sorted(found)]
    for root in roots:
        if root.is_file() and fits(root.name):
            yield root
        elif root.is_dir():
            inside = (p for p in root.rglob("*") if p.is_file() and fits(p.name))
            yield from sorted(p for p in inside if not _hidden(p.relative_to(root).parts))


def _find_remote(text: str, fits: Callable[[str], bool]) -> Iterator[tuple[str, str]]:
    files, inside = opened(text)
    files.invalidate_cache()
    roots = sorted(files.glob(inside)) if MAGIC & set(inside) else [inside]
    for root in roots:
        if files.isfile(root):
            if root == inside or fits(root):
                yield files.unstrip_protocol(root), files.unstrip_protocol(root)
            continue
        for path in sorted(files.find(root)):
            parts = PurePosixPath(path).relative_to(PurePosixPath(root)).parts
            if fits(path) and not _hidden(parts):
                yield files.unstrip_protocol(path), files.unstrip_protocol(path)


def _hidden(parts: tuple[str, ...]) -> bool:
    return any(part[0] in "._" for part in parts)


def opened(url: str) -> tuple[Any, str]:
    """Return fsspec's file system of a URL, and the path in it; raise UsageError without one."""
    try:
        import fsspec
    except ImportError as exc:
        raise UsageError(f"{url} needs fsspec: pip install 'tidewheel[batch]'") from exc
    try:
        files, inside = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as exc:
        advice = "install what fsspec needs for it, as s3fs for s3://"
        raise UsageError(f"{url} cannot be opened: {exc}: {advice}") from exc
    return files, str(inside)


@contextmanager
def _as_os_errors(url: str) -> Iterator[None]:
    try:
        yield
    except (OSError, TidewheelError):
        raise
    except Exception as exc:  # each implementation has its own
        text = str(exc).splitlines()[0][:200] if str(exc) else type(exc).__name__
        raise OSError(f"{url}: {text}") from exc


class _Remote(io.RawIOBase):
    """A file of fsspec whose errors are OSErrors."""

    def __init__(self, url: str, file: Any) -> None:
        self._url, self._file = url, file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with _as_os_errors(self._url):
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
