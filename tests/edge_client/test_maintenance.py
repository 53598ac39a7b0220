"""A look at a stopped device changes nothing, and says what its next start finds."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from edge_client.ipc import hold
from edge_client.maintenance import state_of, wipe
from edge_client.spool.frames import SpoolLimits
from edge_client.spool.queue import Spool
from edge_client.uplink.task_queues import SPOOL, queue_folder, queues
from streams.contract.errors import UsageError
from tests.rig.made_up.tiny_task import task


def everything(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {
        str(path.relative_to(folder)): (
            path.read_bytes() if path.is_file() else b"", path.stat().st_mtime_ns,
        )
        for path in sorted(folder.rglob("*"))
    }  # fmt: skip


@pytest.mark.parametrize("state", ["sound", "torn", "damaged", "settled", "no epoch"])
def test_a_look_at_a_stopped_device_changes_nothing(tmp_path: Path, state: str) -> None:
    hold(tmp_path).close()
    limits = SpoolLimits(file_bytes=200, total_bytes=2000)
    folder = queue_folder(tmp_path, SPOOL, task)
    spool = Spool(folder, limits)
    for i in range(9):
        spool.append(2, b"x" * 50, mark=i)
    if state == "settled":
        spool.settle(spool.read(spool.position, 300))
        spool.declare_lost(3, "disk-full")
    first, *_, last = sorted(folder.glob("*.seg"))
    if state == "torn":
        os.truncate(last, last.stat().st_size - 1)
    elif state == "damaged":
        for file in (first, last):
            content = bytearray(file.read_bytes())
            content[-5] ^= 0xFF
            file.write_bytes(content)
    elif state == "no epoch":
        (folder / "epoch").unlink()
    before = everything(tmp_path)
    seen = state_of(task, "d0", tmp_path)
    assert everything(tmp_path) == before
    found = Spool(folder, limits).audit()
    assert (seen.produced, seen.delivered, seen.dropped, seen.pending) == (
        found.produced, found.delivered, found.dropped, found.pending,
    )  # fmt: skip
    assert seen.late_labels == {}


def test_a_wipe_counts_what_is_pending_of_all_task_versions(tmp_path: Path) -> None:
    for of, count in ((task, 2), (replace(task, version=2), 3)):
        Spool(queue_folder(tmp_path, SPOOL, of)).append(count, b"x" * 50, mark=0)
    with pytest.raises(UsageError, match="5 events are pending and would be lost"):
        wipe(tmp_path, lose_pending=False)
    assert wipe(tmp_path, lose_pending=True) == 5
    assert list(queues(tmp_path, SPOOL)) == []
