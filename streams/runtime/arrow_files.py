"""Arrow's own access to the files of a Delta table, for its datasets.

deltalake gives a dataset a file system in Python. Arrow reads ahead on threads of its own: a
process that ends while they are in Python, as after a query with a limit, dies with SIGSEGV.
Arrow's own file systems are C++ alone.
"""

import os
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs

from streams.contract.errors import UsageError


def arrow_files(where: str, environ: Mapping[str, str] = os.environ) -> pafs.FileSystem:
    """Return the files under a folder, an `s3://` URL, or another one that Arrow knows; raise
    UsageError for what it does not know.

    S3's credentials, region and endpoint are found as deltalake finds them.
    """
    scheme, found, path = where.partition("://")
    if not found:
        return pafs.SubTreeFileSystem(str(Path(where).resolve()), pafs.LocalFileSystem())
    if scheme not in ("s3", "s3a"):
        return _other(where)
    region = environ.get("AWS_REGION") or environ.get("AWS_DEFAULT_REGION") or "us-east-1"
    settings = {"region": region}
    if endpoint := environ.get("AWS_ENDPOINT_URL"):
        protocol, _, host = endpoint.rpartition("://")
        settings |= {"endpoint_override": host.rstrip("/"), "scheme": protocol or "https"}
    return pafs.SubTreeFileSystem(path.rstrip("/"), pafs.S3FileSystem(**settings))


def _other(where: str) -> pafs.FileSystem:
    try:
        files, root = pafs.FileSystem.from_uri(where)
    except (pa.ArrowInvalid, OSError) as exc:
        raise UsageError(f"{where} cannot be read: {exc}") from exc
    return pafs.SubTreeFileSystem(root, files)
