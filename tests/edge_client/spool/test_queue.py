"""The spool against a model: whatever is appended, settled, torn or dropped, the account closes."""

import errno
import os
from pathlib import Path

import pytest

from edge_client.spool.cursor import BLOCK, NAMES, Cursor
from edge_client.spool.frames import DROPS, EVENTS, Frame, list_files
from edge_client.spool.limits import SpoolLimits
from edge_client.spool.queue import Spool
from streams.contract.accounting import IntervalSet
from streams.contract.errors import SpoolError

SMALL = SpoolLimits(file_bytes=200, total_bytes=1000)


def drain(spool: Spool) -> list[Frame]:
    """Read everything from the position on, as the uplink does after a restart."""
    return spool.read(spool.position, 1 << 30)


def test_a_frame_comes_back_as_it_was_written(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    assert spool.append(3, b"abc", mark=7) == 0
    assert spool.append(2, b"de", mark=9) == 3
    frames = drain(Spool(tmp_path))
    assert [(f.kind, f.first, f.count, f.mark, f.payload) for f in frames] == [
        (EVENTS, 0, 3, 7, b"abc"),
        (EVENTS, 3, 2, 9, b"de"),
    ]


def test_a_torn_tail_is_cut_off_and_its_seqs_are_handed_out_again(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.append(1, b"whole", mark=1)
    file = next(tmp_path.glob("*.seg"))
    whole = file.stat().st_size
    spool.append(1, b"torn", mark=2)
    os.truncate(file, file.stat().st_size - 1)
    again = Spool(tmp_path)
    assert again.torn_bytes > 0
    assert file.stat().st_size == whole
    assert again.append(1, b"new", mark=3) == 1
    assert [f.payload for f in drain(again)] == [b"whole", b"new"]


def test_damage_in_an_older_file_is_declared_once(tmp_path: Path) -> None:
    spool = Spool(tmp_path, SMALL)
    for i in range(12):
        spool.append(1, b"x" * 50, mark=i)
    files = sorted(tmp_path.glob("*.seg"))
    damaged = bytearray(files[0].read_bytes())
    damaged[-5] ^= 0xFF
    files[0].write_bytes(damaged)
    for _ in range(3):
        spool = Spool(tmp_path, SMALL)
    frames = drain(spool)
    seen = IntervalSet((f.first, f.first + f.count - 1) for f in frames if f.kind == EVENTS)
    lost = [d for f in frames if f.kind == DROPS for d in f.declarations()]
    assert [d.reason for d in lost] == ["corrupt"]
    assert seen.add(lost[0].first, lost[0].last) == lost[0].last - lost[0].first + 1
    assert list(seen) == [(0, 11)]


def flip(path: Path, at: int) -> None:
    """Damage one byte."""
    data = bytearray(path.read_bytes())
    data[at] ^= 0xFF
    path.write_bytes(data)


def seqs(frames: list[Frame], kind: int = EVENTS) -> list[int]:
    if kind == EVENTS:
        spans = [(f.first, f.first + f.count - 1) for f in frames if f.kind == EVENTS]
    else:
        spans = [(d.first, d.last) for f in frames for d in f.declarations()]
    return [seq for first, last in spans for seq in range(first, last + 1)]


def test_a_damaged_frame_in_the_newest_file_costs_itself_alone(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    for i in range(5):
        spool.append(2, b"x" * 50, mark=i)
    flip(next(tmp_path.glob("*.seg")), 2 * 82 + 40)
    again = Spool(tmp_path)
    frames = drain(again)
    assert seqs(frames) == [0, 1, 2, 3, 6, 7, 8, 9]
    assert [d for f in frames for d in f.declarations()] == [(4, 5, "corrupt")]
    assert (again.torn_bytes, again.next_seq, again.mark) == (0, 10, 4)


@pytest.mark.parametrize("at", range(82, 164))
def test_seqs_that_were_sent_are_not_handed_out_again_whatever_byte_of_the_end_is_damaged(
    tmp_path: Path, at: int
) -> None:
    spool = Spool(tmp_path)
    spool.append(2, b"x" * 50, mark=0)
    spool.append(2, b"x" * 50, mark=1)
    assert seqs(drain(spool)) == [0, 1, 2, 3]  # on the way
    flip(next(tmp_path.glob("*.seg")), at)
    again = Spool(tmp_path)
    assert again.append(1, b"new", mark=2) >= 4
    frames = drain(again)
    again.settle(frames)
    assert sorted(seqs(frames) + seqs(frames, DROPS)) == list(range(again.next_seq))
    assert again.account().pending == 0
    assert again.account().balanced


def test_what_is_damaged_while_the_device_runs_is_declared_when_the_reader_has_passed_it(
    tmp_path: Path,
) -> None:
    spool = Spool(tmp_path)
    for i in range(4):
        spool.append(1, b"x" * 50, mark=i)
    flip(next(tmp_path.glob("*.seg")), 82 + 40)
    spool.settle(drain(spool))
    spool.settle(drain(spool))  # the declaration
    account = spool.account()
    assert (account.delivered, account.dropped, account.pending) == (3, {"corrupt": 1}, 0)


def test_a_declaration_that_is_damaged_is_made_again(tmp_path: Path) -> None:
    spool = Spool(tmp_path, SMALL)
    for i in range(14):
        spool.append(1, b"y" * 60, mark=i)
    declaring = [
        (file, frame)
        for file in list_files(tmp_path)
        for frame in file.frames()
        if frame.kind == DROPS
    ]
    file, frame = declaring[0]
    flip(file.path, frame.end.offset - 1)
    again = Spool(tmp_path, SMALL)
    again.settle(drain(again))
    account = again.account()
    assert account.pending == 0
    assert account.produced == 14
    assert account.dropped["corrupt"] == len(seqs([frame], DROPS))


@pytest.mark.parametrize("lost", [["position.0"], ["position.1"], ["position.0", "position.1"]])
def test_a_damaged_position_is_made_good_from_the_other_or_from_the_files(
    tmp_path: Path, lost: list[str]
) -> None:
    spool = Spool(tmp_path, SMALL)
    for i in range(30):
        spool.append(1, b"y" * 60, mark=i)
    spool.settle(drain(spool)[:4])
    spool.sync_position()
    for name in lost:
        flip(tmp_path / name, 20)
    again = Spool(tmp_path, SMALL)
    again.settle(drain(again))
    account = again.account()
    assert account.balanced
    assert (account.produced, account.pending) == (30, 0)


def test_a_position_that_was_long_and_is_short_is_read_again(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    cursor = spool._cursor
    cursor.settled_seq = 4000
    cursor.owed = IntervalSet((i, i) for i in range(0, 4000, 2))
    cursor.save_both()
    assert (tmp_path / "position.0").stat().st_size > 2 * BLOCK
    cursor.owed = IntervalSet([(7, 9)])
    cursor.delivered = 3997
    cursor.save_both()
    for name in NAMES:
        assert (tmp_path / name).stat().st_size == BLOCK
        read = Cursor._read(tmp_path, name)
        assert read is not None
        assert (read.delivered, list(read.owed)) == (3997, [(7, 9)])


def test_at_the_cap_the_oldest_unread_file_is_declared_and_dropped(tmp_path: Path) -> None:
    spool = Spool(tmp_path, SMALL)
    begun = spool.read(spool.position, 1)
    for i in range(40):
        spool.append(1, b"y" * 60, mark=i)
    assert sum(f.stat().st_size for f in tmp_path.glob("*.seg")) < 1400
    frames = drain(spool)
    spool.settle(frames)
    account = spool.account()
    assert begun == []
    assert account.produced == 40
    assert account.pending == 0
    assert account.dropped["spool-full"] > 0
    assert account.balanced


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


def test_a_full_disk_leaves_no_half_frame_and_uses_up_no_seq(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = Spool(tmp_path)
    spool.append(1, b"before", mark=0)
    real = os.write

    def short(fd: int, data: bytes) -> int:
        if len(data) < 12:
            raise OSError(errno.ENOSPC, "no space left on device")
        return real(fd, bytes(data[: len(data) // 2]))

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", short)
        with pytest.raises(OSError, match="no space"):
            spool.append(5, b"z" * 100, mark=1)
    spool.declare_lost(5, "disk-full")
    assert spool.append(1, b"after", mark=2) == 6
    frames = drain(Spool(tmp_path))
    assert [f.payload for f in frames if f.kind == EVENTS] == [b"before", b"after"]
    assert frames[1].declarations() == [(1, 5, "disk-full")]


def test_a_read_only_folder_is_a_one_line_error() -> None:
    with pytest.raises(SpoolError, match="cannot be opened"):
        Spool(Path("/proc/tidewheel-spool"))
