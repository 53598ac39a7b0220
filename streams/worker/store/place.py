"""Where the store is: a folder, or a URL of an object store (`s3://bucket/prefix`).

Several workers on several machines can share a URL. The fence then needs a server that writes an
object only if there is none of its name (S3: If-None-Match), as Delta's log has it: of two workers
that write the same version one fails, whatever either believed. S3's credentials are in the
environment (`AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`), or in a file
(`AWS_SHARED_CREDENTIALS_FILE`); beside them `AWS_REGION` and `AWS_ENDPOINT_URL`.
"""

import os
from collections.abc import Mapping
from pathlib import Path

import pyarrow.dataset as ds
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError

from streams.contract.errors import TidewheelError, UsageError
from streams.runtime.arrow_files import arrow_files
from streams.runtime.object_store import open_store

Place = str | Path

OWNER = "task"  # the file with the id of the task version that the store is of


def place_of(text: str) -> Place:
    """Return a URL as it is, anything else as a path."""
    return text.rstrip("/") if "://" in text else Path(text)


def is_local(place: Place) -> bool:
    return isinstance(place, Path) or "://" not in place


def beside(place: Place, state: Path) -> Path:
    """Return the folder in which workers keep what is of one machine: their locks, and the folder
    that Faust wants. It is beside the store's folder, or in `state` where the store is a URL."""
    return (Path(place).parent if is_local(place) else state) / "workers"


def claim(place: Place, task: str) -> None:
    """Note which task version, by its id, the store is of; raise UsageError if it is another's: the
    partitions of two `events` cannot share a fence."""
    store = open_store(place)
    try:
        try:
            found = store.read(OWNER).decode(errors="replace")
        except FileNotFoundError:
            store.write(OWNER, task.encode())
            return
    except OSError as exc:
        raise TidewheelError(f"the store {place} cannot be used: {exc}") from exc
    if found != task:
        raise UsageError(f"the store {place} is of {found}, not of {task}: use another --store")


def table_at(place: Place, name: str) -> str:
    """Return where a table of the store is."""
    return f"{place}/{name}"


def options_of(place: Place, environ: Mapping[str, str] = os.environ) -> dict[str, str] | None:
    """Return what deltalake needs for a place; None for a folder."""
    if is_local(place):
        return None
    options = {"conditional_put": "etag", **_credentials(environ)}
    if environ.get("AWS_ENDPOINT_URL", "").startswith("http://"):
        options["allow_http"] = "true"
    return options


def _credentials(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the credentials of a file, which deltalake does not read by itself."""
    if "AWS_SHARED_CREDENTIALS_FILE" not in environ or "AWS_ACCESS_KEY_ID" in environ:
        return {}
    from botocore.session import Session

    found = Session().get_credentials()
    if found is None:
        raise UsageError("AWS_SHARED_CREDENTIALS_FILE: the file has no credentials")
    named = {"aws_access_key_id": found.access_key, "aws_secret_access_key": found.secret_key}
    return {**named, **({"aws_session_token": found.token} if found.token else {})}


def make_folder(where: str) -> None:
    """Make a table's folder; an object store needs none."""
    if is_local(where):
        Path(where).mkdir(parents=True, exist_ok=True)


def rows_in(table: DeltaTable, where: str) -> ds.Dataset:
    """Return the rows of the version that `table` has loaded, which is at `where`."""
    return table.to_pyarrow_dataset(filesystem=arrow_files(where))


def has_table(place: Place, name: str) -> bool:
    """Return whether the store has a table; raise TidewheelError if that cannot be asked."""
    if is_local(place):
        return (Path(place) / name / "_delta_log").is_dir()
    where = table_at(place, name)
    try:
        return DeltaTable.is_deltatable(where, options_of(place))
    except (DeltaError, OSError) as exc:
        raise TidewheelError(f"the store {where} cannot be read: {exc}") from exc
