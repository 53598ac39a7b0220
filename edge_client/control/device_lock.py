"""The lock on a device's folder."""

import fcntl
import time
from pathlib import Path
from typing import IO

from streams.contract.errors import UsageError

LOOK_S = 0.1


def hold(folder: Path, patience_s: float = 0.0) -> IO[str]:
    """Lock the device's folder while the handle is open; raise UsageError if another agent still
    has the lock after `patience_s`, or the folder is not writable. Commands that read a device
    without an agent hold it too, for as long as they read: an agent has patience with them."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = (folder / "lock").open("a")
    except OSError as exc:
        raise UsageError(
            f"the device's folder {folder} cannot be written: {exc}: use another --state"
        ) from exc
    deadline = time.monotonic() + patience_s
    while not _locked(handle):
        if time.monotonic() >= deadline:
            handle.close()
            raise UsageError(
                f"another agent serves the device in {folder}: stop it, or use another --device"
            )
        time.sleep(LOOK_S)
    return handle


def _locked(handle: IO[str]) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
