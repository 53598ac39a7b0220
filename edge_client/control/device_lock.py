"""The lock on a device's folder, and the check that its spool fits the task."""

import fcntl
import time
from pathlib import Path
from typing import IO

import pyarrow as pa

from edge_client.spool.frames import EVENTS
from edge_client.spool.queue import Spool
from streams.contract.errors import MalformedRecord, SpoolError, UsageError
from streams.contract.events.batches import decode_batch

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


def check_spool(spool: Spool, task: str, schema: pa.Schema) -> None:
    """Raise UsageError if pending events or labels have another shape than this task's."""
    try:
        frames = spool.read(spool.position, 1)
    except OSError as exc:
        raise SpoolError(f"the spool cannot write its position: {exc}: free some disk") from exc
    for frame in frames:
        if frame.kind != EVENTS:
            continue
        try:
            decode_batch(frame.payload, schema)
        except MalformedRecord as exc:
            raise UsageError(
                f"{spool.folder} has what does not fit task {task!r} ({exc}): "
                "send it with the old task file first, or remove that folder"
            ) from exc
