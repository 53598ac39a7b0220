"""The limits of a spool: the oldest files go at the cap, and what is too old goes by its age."""

import os
from pathlib import Path

from edge_client.spool.frames import EVENTS
from edge_client.spool.limits import NEVER_SET_S, SpoolLimits
from edge_client.spool.queue import Spool
from tests.rig.made_up.uplink_broker import Clock

HOUR_S = 3600.0


class Aging:
    """A spool with an age limit of eight hours and a clock."""

    def __init__(self, folder: Path) -> None:
        self.clock = Clock()
        self.clock.now = NEVER_SET_S + 1000 * HOUR_S
        self.folder = folder
        limits = SpoolLimits(file_bytes=300, age_s=8 * HOUR_S)
        self.spool = Spool(folder, limits, clock=self.clock)

    def append(self, count: int = 1) -> None:
        for _ in range(count):
            self.spool.append(1, b"x" * 60, mark=0)
            newest = max(self.folder.glob("*.seg"))
            os.utime(newest, (self.clock.now, self.clock.now))

    def lost(self) -> dict[str, int]:
        while frames := self.spool.read(self.spool.position, 1 << 30):
            self.spool.settle(frames)
        assert self.spool.account().pending == 0
        return self.spool.account().dropped


def test_what_is_too_old_is_declared_with_its_reason(tmp_path: Path) -> None:
    device = Aging(tmp_path)
    device.append(9)  # three to a file; the first file is where the reader is
    device.clock.now += 5 * HOUR_S
    device.append(3)
    device.clock.now += 4 * HOUR_S
    device.spool.expire()
    assert device.lost() == {"spool-age": 6}


def test_events_that_come_slowly_live_no_longer_than_an_eighth_beyond_the_limit(
    tmp_path: Path,
) -> None:
    device = Aging(tmp_path)
    device.append(3)
    for _ in range(40):
        device.append()
        device.clock.now += HOUR_S / 2
        device.spool.expire()
        account = device.spool.account()
        assert account.balanced
    alive = [f for f in device.spool.read(device.spool.position, 1 << 30) if f.kind == EVENTS]
    assert 3 + 16 <= len(alive) <= 3 + 16 + 4  # the first file is where the reader is


def test_a_clock_that_is_set_back_drops_nothing(tmp_path: Path) -> None:
    device = Aging(tmp_path)
    device.append(6)
    device.clock.now -= 500 * HOUR_S
    device.spool.expire()
    device.append(6)
    device.spool.expire()
    device.clock.now += 500 * HOUR_S  # and mended: what was written meanwhile looks 500 hours old
    device.append()
    device.spool.expire()
    assert device.lost() == {}


def test_the_time_of_a_clock_that_was_never_set_tells_no_age(tmp_path: Path) -> None:
    device = Aging(tmp_path)
    device.clock.now = 5 * HOUR_S
    device.append(9)
    device.spool.expire()
    device.clock.now = NEVER_SET_S + 9000 * HOUR_S
    device.append()
    device.spool.expire()
    assert device.lost() == {}
