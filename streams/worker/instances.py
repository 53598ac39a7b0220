"""A worker's name in its group: unique among those that run, and the same after a restart.

Workers that share a store hold a lock file each, `workers/<name>.lock` beside the store, for as
long as they live. Two of one name would fence each other off (Kafka's static membership).
"""

import fcntl
import logging
import re
import socket
from itertools import count
from pathlib import Path
from typing import IO

from streams.contract.errors import UsageError

log = logging.getLogger(__name__)

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


def hold(workers: Path, asked: str | None = None) -> tuple[str, IO[str]]:
    """Return the name and its lock, held while the handle is open: `asked`, otherwise the first of
    `<host>-1`, `<host>-2`, … that is free. Raise UsageError if a running worker has the name."""
    if asked is not None:
        if not NAME.fullmatch(asked):
            raise UsageError(f"--instance {asked}: letters, digits, '.', '_' and '-', at most 63")
        handle = _lock(workers, asked)
        if handle is None:
            raise UsageError(
                f"a worker named {asked} is running beside {workers}: stop it, or give this one "
                "another --instance"
            )
        return asked, handle
    host = re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname())[:50].strip("-") or "worker"
    tried = ((name, _lock(workers, name)) for name in (f"{host}-{n}" for n in count(1)))
    return next((name, handle) for name, handle in tried if handle is not None)


def _lock(workers: Path, name: str) -> IO[str] | None:
    try:
        workers.mkdir(parents=True, exist_ok=True)
        handle = (workers / f"{name}.lock").open("a")
    except OSError as exc:
        raise UsageError(f"{workers} cannot be written: {exc}: use another --store") from exc
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        handle.close()
        return None
    except OSError as exc:  # a file system without locks, as some that are mounted from elsewhere
        log.warning("%s cannot be locked (%s): give every worker its own --instance", workers, exc)
    return handle
