"""The spool against a model: whatever is appended, sent, settled, torn or damaged,
and wherever the process dies, each seq that was handed out is delivered or declared dropped.

Files are of 200 bytes and all of them of 1,000, so that rotation and dropping happen all the time.
An event is its seq and the number of its making: a seq that was sent never comes with another
number.
"""

import contextlib
import errno
import fcntl
import itertools
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from edge_client.spool.frames import EVENTS, HEADER, Block, Frame, SpoolLimits
from edge_client.spool.queue import Spool
from streams.contract.accounting import IntervalSet

STEPS = [f"spool-step-{n}" for n in range(1, 6)]
LOST_TO_DAMAGE = "corrupt"
COUNTS = st.lists(st.integers(1, 6), min_size=1, max_size=3)  # of events, a frame each


class DiedError(Exception):
    """The process came to its failpoint."""


def written(events: list[tuple[int, int]]) -> bytes:
    return b",".join(b"%d.%d-------" % event for event in events)


def parsed(payload: bytes) -> list[tuple[int, int]]:
    """(seq, number of its making)"""
    texts = [text.rstrip(b"-").split(b".") for text in payload.split(b",")]
    return [(int(seq), int(made)) for seq, made in texts]


@contextlib.contextmanager
def disk_with(room: int) -> Iterator[None]:
    """A disk on which files may grow by so many bytes in all; what they have may be overwritten."""
    real, left = os.write, room

    def write(fd: int, data: bytes) -> int:
        nonlocal left
        appends = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_APPEND
        at = os.fstat(fd).st_size if appends else os.lseek(fd, 0, os.SEEK_CUR)
        fits = max(0, os.fstat(fd).st_size - at) + left
        if not fits:
            raise OSError(errno.ENOSPC, "no space left on device")
        before = os.fstat(fd).st_size
        done = real(fd, data[:fits])
        left -= os.fstat(fd).st_size - before
        return done

    os.write = write
    try:
        yield
    finally:
        os.write = real


class SpoolMachine(RuleBasedStateMachine):
    """Everything that a spool may meet."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.dies_at = ""
        self.made = 0
        self.produced = 0
        self.sent: dict[int, int] = {}  # seq: the number of its making
        self.dropped = IntervalSet()
        self.unsettled: list[Frame] = []
        self.damaged = False
        self.flipped: set[Path] = set()
        self.spool = self.opened()

    def teardown(self) -> None:
        self.drain_all()
        shutil.rmtree(self.folder)

    def opened(self) -> Spool:
        return Spool(self.folder, SpoolLimits(200, 1000), failpoint=self.reached)

    def reached(self, point: str) -> None:
        if point == self.dies_at:
            self.dies_at = ""
            raise DiedError(point)

    def reopen(self, in_flight: Sequence[int] = ()) -> None:
        """After a crash; a write of frames of so many events had not returned."""
        self.spool = self.opened()
        self.unsettled.clear()
        self.flipped.clear()
        if self.damaged:
            assert self.spool.next_seq >= self.produced
        else:
            found = self.spool.next_seq - self.produced  # those that are whole count
            assert found in itertools.accumulate(in_flight, initial=0)
        self.produced = self.spool.next_seq

    def blocks(self, counts: Sequence[int]) -> list[Block]:
        found, end = list[Block](), self.spool.next_seq
        for count in counts:
            self.made += 1
            first, end = end, end + count
            found.append(Block(count, written([(i, self.made) for i in range(first, end)]), end))
        return found

    @rule(counts=COUNTS)
    def append(self, counts: list[int]) -> None:
        assert self.spool.extend(self.blocks(counts)) == self.produced
        self.produced += sum(counts)

    @rule(count=st.integers(1, 3))
    def lose(self, count: int) -> None:
        self.spool.declare_lost(count, "metered")
        self.produced += count

    @rule(counts=COUNTS, room=st.integers(0, 300))
    def append_on_a_full_disk(self, counts: list[int], room: int) -> None:
        with disk_with(room), contextlib.suppress(OSError):
            self.spool.extend(self.blocks(counts))
            self.produced += sum(counts)

    @rule(counts=COUNTS, cut=st.integers(0, 400))
    def crash_in_a_write(self, counts: list[int], cut: int) -> None:
        """The power fails while the last frames are written: any part of them may be there."""
        blocks = self.blocks(counts)
        self.spool.extend(blocks)
        newest = max(self.folder.glob("*.seg"))
        size = sum(HEADER + len(block.payload) for block in blocks)
        os.truncate(newest, newest.stat().st_size - min(cut, size))
        self.reopen(in_flight=counts)

    @rule(counts=COUNTS, step=st.sampled_from(STEPS))
    def die_at_a_step(self, counts: list[int], step: str) -> None:
        self.dies_at = step
        try:
            self.append(counts)
            self.dies_at = ""
        except DiedError:
            self.reopen(in_flight=counts)

    @rule(zeros=st.integers(0, 60), save=st.booleans())
    def crash(self, zeros: int, save: bool) -> None:
        if save:
            self.spool.sync_position()
        with max(self.folder.glob("*.seg")).open("ab") as stream:
            stream.write(bytes(zeros))  # what a file system leaves of a write that was not synced
        self.reopen()

    @rule(data=st.data(), bits=st.integers(1, 255))
    def damage_a_byte(self, data: st.DataObject, bits: int) -> None:
        """Of any file, one between two starts."""
        names = [*self.folder.glob("*.seg"), *self.folder.glob("position.*")]
        files = sorted(f for f in names if f.stat().st_size and f not in self.flipped)
        if not files or self.flipped:
            return
        file = data.draw(st.sampled_from(files))
        content = bytearray(file.read_bytes())
        place = data.draw(st.integers(1, min(len(content), 400)))
        content[-place if file.suffix == ".seg" else place - 1] ^= bits
        with file.open("r+b") as stream:
            stream.write(content)
        self.flipped.add(file)
        self.damaged = True

    @rule(limit=st.integers(1, 400))
    def send(self, limit: int) -> None:
        start = self.unsettled[-1].end if self.unsettled else self.spool.position
        for frame in self.spool.read(start, limit):
            self.unsettled.append(frame)
            for entry in frame.declarations():
                self.dropped.add(entry.first, entry.last)
            if frame.kind == EVENTS:
                events = parsed(frame.payload)
                assert [seq for seq, _ in events] == list(
                    range(frame.first, frame.first + frame.count)
                )
                for seq, made in events:
                    assert self.sent.setdefault(seq, made) == made, "another event with its seq"

    @precondition(lambda self: self.unsettled)
    @rule(data=st.data(), room=st.integers(0, 300))
    def settle(self, data: st.DataObject, room: int) -> None:
        """The disk may be full: that must not hinder it."""
        n = data.draw(st.integers(1, len(self.unsettled)))
        with disk_with(room):
            self.spool.settle(self.unsettled[:n])
        del self.unsettled[:n]

    @invariant()
    def nothing_is_lost_unseen(self) -> None:
        assert self.spool.next_seq == self.produced
        assert self.spool.account().balanced
        if not self.damaged:  # what is pending is in the files, to the event
            assert self.spool.audit() == self.spool.account()

    @invariant()
    def what_is_dropped_was_not_sent(self) -> None:
        if not self.damaged:
            assert not any(seq in self.dropped for seq in self.sent)

    @rule()
    def drain_all(self) -> None:
        self.deliver()
        if self.damaged and self.spool.account().pending:  # at the end, where no reader comes by
            self.reopen()
            self.deliver()
        account = self.spool.account()
        assert (account.produced, account.pending) == (self.produced, 0)
        whole = IntervalSet(self.dropped)
        for seq in self.sent:
            whole.add(seq)
        assert list(whole) == ([(0, self.produced - 1)] if self.produced else [])
        if not self.damaged:
            assert account.delivered == len(self.sent)
            assert LOST_TO_DAMAGE not in account.dropped

    def deliver(self) -> None:
        while True:
            self.send(1 << 20)
            if not self.unsettled:
                return
            self.spool.settle(self.unsettled)
            self.unsettled.clear()


TestSpool = SpoolMachine.TestCase
TestSpool.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
