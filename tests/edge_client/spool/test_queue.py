"""Exact cases of damage and loss; test_spool_model has all others."""

import struct
from pathlib import Path
from zlib import crc32

import pytest

from edge_client.spool.frames import EVENTS, Frame, SpoolLimits, list_files
from edge_client.spool.queue import Spool
from streams.contract.errors import SpoolError


def drain(spool: Spool) -> list[Frame]:
    """Read everything from the position on, as the uplink does after a restart."""
    return spool.read(spool.position, 1 << 30)


def flip(path: Path, at: int) -> None:
    """Damage one byte."""
    data = bytearray(path.read_bytes())
    data[at] ^= 0xFF
    path.write_bytes(data)


def test_a_frame_has_the_bytes_of_the_description(tmp_path: Path) -> None:
    Spool(tmp_path).append(2, b"abc", mark=-7)
    (file,) = tmp_path.glob("*.seg")
    assert file.name == f"{0:016d}-{0:016d}.seg"
    rest = struct.pack("<B3xQIq", 1, 0, 2, -7) + b"abc"
    assert file.read_bytes() == struct.pack("<II", 3, crc32(rest)) + rest
    assert crc32(b"123456789") == 0xCBF43926  # the check value of CRC-32/ISO-HDLC


def test_a_damaged_frame_in_the_newest_file_costs_itself_alone(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    for i in range(5):
        spool.append(2, b"x" * 50, mark=i)
    flip(next(tmp_path.glob("*.seg")), 2 * 82 + 40)
    again = Spool(tmp_path)
    frames = drain(again)
    assert [(f.first, f.count) for f in frames if f.kind == EVENTS] == [
        (0, 2), (2, 2), (6, 2), (8, 2),
    ]  # fmt: skip
    assert [d for f in frames for d in f.declarations()] == [(4, 5, "corrupt")]
    assert (again.torn_bytes, again.next_seq, again.mark) == (0, 10, 4)


def test_an_audit_counts_what_is_pending_in_the_files_and_finds_what_was_taken_away(
    tmp_path: Path,
) -> None:
    spool = Spool(tmp_path, SpoolLimits(file_bytes=200, total_bytes=10_000))
    for i in range(12):
        spool.append(2, b"x" * 50, mark=i)
    spool.settle(drain(spool)[:2])
    assert spool.audit() == spool.account()
    assert (spool.audit().pending, spool.audit().balanced) == (20, True)
    newest = list_files(tmp_path)[-1].path
    flip(newest, newest.stat().st_size - 3)  # in its last frame, of two events
    assert spool.account().balanced  # it cannot tell
    assert (spool.audit().pending, spool.audit().balanced) == (18, False)


def test_a_lost_spool_starts_a_new_epoch_and_a_kept_one_does_not(tmp_path: Path) -> None:
    first = Spool(tmp_path)
    first.append(1, b"a", mark=0)
    assert Spool(tmp_path).epoch == first.epoch
    for file in tmp_path.glob("*.seg"):
        file.unlink()
    second = Spool(tmp_path)
    assert second.epoch != first.epoch
    assert second.account().produced == 0


def test_a_read_only_folder_is_a_one_line_error() -> None:
    with pytest.raises(SpoolError, match="cannot be opened"):
        Spool(Path("/proc/tidewheel-spool"))
