"""The lock on a device's folder, and the check that its spool fits the task."""

import fcntl
from pathlib import Path
from typing import IO

from edge_client.spool.frames import EVENTS
from edge_client.spool.queue import Spool
from streams.contract.errors import MalformedRecord, SpoolError, UsageError
from streams.contract.events.batches import decode_batch
from streams.contract.events.records import event_schema
from streams.contract.task import Task


def hold(folder: Path) -> IO[str]:
    """Lock the device's folder while the handle is open; raise UsageError if another agent has the
    lock or the folder is not writable."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = (folder / "lock").open("a")
    except OSError as exc:
        raise UsageError(
            f"the device's folder {folder} cannot be written: {exc}: use another --state"
        ) from exc
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        handle.close()
        raise UsageError(
            f"another agent serves the device in {folder}: stop it, or use another --device"
        ) from None
    return handle


def check_spool(spool: Spool, task: Task) -> None:
    """Raise UsageError if pending events have another shape than this task's."""
    try:
        frames = spool.read(spool.position, 1)
    except OSError as exc:
        raise SpoolError(f"the spool cannot write its position: {exc}: free some disk") from exc
    for frame in frames:
        if frame.kind != EVENTS:
            continue
        try:
            decode_batch(frame.payload, event_schema(task))
        except MalformedRecord as exc:
            raise UsageError(
                f"the spool has events that do not fit task {task.name!r} ({exc}): "
                "send them with the old task file first, or remove the device's spool folder"
            ) from exc
