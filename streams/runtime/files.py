"""Atomic writes of files, in a folder or in an object store: after a crash a file has its old or
its new content, never a mix.

A process that is killed leaves its temporary file, `.NAME.PID.NUMBER.tmp`. The next write into the
folder that comes LEFT_S later, by whichever process, removes it. Its age decides, not its process:
that may be one of another container, or have the number of a dead one.

A registry or a store keeps its files in a folder, or under a URL that fsspec opens
(`s3://bucket/prefix`, …). `create` succeeds for only one of several writers; a registry's history
depends on it. In a folder it is a hard link; in an object store a conditional write (S3:
If-None-Match), for which fsspec's implementation must support `mode="create"`, as s3fs does.
"""

import contextlib
import itertools
import os
import re
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol

from streams.contract.errors import Retryable, UsageError

if TYPE_CHECKING:
    import pyarrow.fs as pafs

LEFT_S = 3600.0  # a write takes seconds
_TEMPORARY = re.compile(r"\..+\.\d+\.\d+\.tmp")
_numbers = itertools.count()  # several threads may write one file
FOLDERS = 1000  # that a process remembers to have searched
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
    if len(_looked) >= FOLDERS:
        _looked.clear()  # in one step: other threads write too
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


PRECONDITION_FAILED = 412  # the status of a conditional write where there is a file


class ObjectStore(Protocol):
    """A store of files. Names are relative, with slashes. Raises FileNotFoundError for a missing
    file, Retryable while a remote store is unreachable."""

    where: str

    def read(self, name: str) -> bytes: ...

    def write(self, name: str, data: bytes) -> None: ...

    def create(self, name: str, data: bytes) -> None:
        """Write a new file; raise FileExistsError, and write nothing, if it exists."""
        ...

    def names(self, folder: str) -> list[str]:
        """Return the names of the files in `folder`, sorted; none if there is no such folder."""
        ...

    def tags(self, folder: str) -> dict[str, str]:
        """Return the files in `folder` by name, each with its `tag`, in one request."""
        ...

    def remove(self, name: str) -> None: ...

    def tag(self, name: str) -> str | None:
        """Return a value that changes whenever the file is written; None if there is no file."""
        ...


def open_store(place: str | Path) -> ObjectStore:
    """Return the store at a path or URL; raise UsageError for a path that is a file."""
    text = str(place)
    if "://" in text:
        return RemoteStore(text)
    if Path(text).is_file():
        raise UsageError(f"{text} is a file: name a folder, or a URL")
    return FolderStore(Path(text))


class FolderStore:
    """A folder; every write is synced."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.where = str(folder)

    def read(self, name: str) -> bytes:
        return (self._folder / name).read_bytes()

    def write(self, name: str, data: bytes) -> None:
        write_atomic(self._folder / name, data)

    def create(self, name: str, data: bytes) -> None:
        path = self._folder / name
        temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.new")
        write_atomic(temporary, data)
        try:
            os.link(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        sync_directory(path.parent)

    def names(self, folder: str) -> list[str]:
        return sorted(self.tags(folder))

    def tags(self, folder: str) -> dict[str, str]:
        found = {}
        for path in (self._folder / folder).glob("*"):
            if not path.name.startswith(".") and (tag := self.tag(f"{folder}/{path.name}")):
                found[path.name] = tag
        return found

    def remove(self, name: str) -> None:
        path = self._folder / name
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
            sync_directory(path.parent)

    def tag(self, name: str) -> str | None:
        try:
            return _tag((self._folder / name).stat())
        except FileNotFoundError:
            return None


def _tag(found: os.stat_result) -> str:
    return f"{found.st_ino}-{found.st_mtime_ns}-{found.st_size}"


class RemoteStore:
    """A URL that fsspec opens."""

    def __init__(self, url: str) -> None:
        self.where = url.rstrip("/")
        try:
            import fsspec

            self._files, self._root = fsspec.core.url_to_fs(self.where)
        except (ImportError, ValueError) as exc:
            raise UsageError(
                f"{url} cannot be opened: {exc}: install what fsspec needs for it, "
                'as pip install "tidewheel[s3]"'
            ) from exc

    def read(self, name: str) -> bytes:
        return bytes(self._ask(self._files.cat_file, self._path(name)))

    def write(self, name: str, data: bytes) -> None:
        self._ask(self._files.pipe_file, self._path(name), data)

    def create(self, name: str, data: bytes) -> None:
        try:
            self._ask(self._files.pipe_file, self._path(name), data, mode="create")
        except Retryable as exc:
            if _status(exc.__cause__) == PRECONDITION_FAILED:
                raise FileExistsError(self._path(name)) from exc
            raise

    def names(self, folder: str) -> list[str]:
        return sorted(self.tags(folder))

    def tags(self, folder: str) -> dict[str, str]:
        self._files.invalidate_cache()  # others write there, too
        try:
            found = self._ask(self._files.ls, self._path(folder), detail=True)
        except FileNotFoundError:
            return {}
        named = {str(about["name"]).rpartition("/")[2]: self._tag(about) for about in found}
        return {name: tag for name, tag in named.items() if name}

    def remove(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._ask(self._files.rm_file, self._path(name))

    def tag(self, name: str) -> str | None:
        self._files.invalidate_cache()
        try:
            found = self._ask(self._files.info, self._path(name))
        except FileNotFoundError:
            return None
        return self._tag(found)

    def _tag(self, about: dict[str, Any]) -> str:
        return repr([about.get(key) for key in ("ETag", "LastModified", "mtime", "size")])

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _ask(self, what: Any, *given: Any, **named: Any) -> Any:
        try:
            return what(*given, **named)
        except (FileNotFoundError, FileExistsError):
            raise
        except Exception as exc:  # each implementation has its own errors
            raise Retryable(f"{self.where} cannot be reached: {exc!r}"[:300]) from exc


def _status(error: BaseException | None) -> int | None:
    """Return the HTTP status of a library's error, or of the one that it was made of: botocore has
    it in its response, others as an attribute."""
    while error is not None:
        response = getattr(error, "response", None)
        if isinstance(response, dict):
            return int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        for name in ("status_code", "status", "code"):
            if isinstance(found := getattr(error, name, None), int):
                return found
        error = error.__cause__
    return None


# --- for Arrow ------------------------------------------------------------------------------------


def arrow_files(where: str, environ: Mapping[str, str] = os.environ) -> "pafs.FileSystem":
    """Return the files under a folder, an `s3://` URL, or another one that Arrow knows, for the
    dataset of a Delta table; raise UsageError for what it does not know.

    deltalake gives a dataset a file system in Python. Arrow reads ahead on its threads: a
    process that ends while they are in Python, as after a query with a limit, dies with SIGSEGV.
    Arrow's own file systems are C++ alone. S3's credentials, region and endpoint are found as
    deltalake finds them.
    """
    import pyarrow as pa  # a registry has none
    import pyarrow.fs as pafs

    scheme, found, path = where.partition("://")
    if not found:
        return pafs.SubTreeFileSystem(str(Path(where).resolve()), pafs.LocalFileSystem())
    if scheme not in ("s3", "s3a"):
        try:
            files, root = pafs.FileSystem.from_uri(where)
        except (pa.ArrowInvalid, OSError) as exc:
            raise UsageError(f"{where} cannot be read: {exc}") from exc
        return pafs.SubTreeFileSystem(root, files)
    region = environ.get("AWS_REGION") or environ.get("AWS_DEFAULT_REGION") or "us-east-1"
    settings = {"region": region}
    if endpoint := environ.get("AWS_ENDPOINT_URL"):
        protocol, _, host = endpoint.rpartition("://")
        settings |= {"endpoint_override": host.rstrip("/"), "scheme": protocol or "https"}
    return pafs.SubTreeFileSystem(path.rstrip("/"), pafs.S3FileSystem(**settings))
