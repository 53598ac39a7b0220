"""Whole fleets have the machine nearly for themselves: their devices train only where nothing else
wants the processor, and beside three other tests a loop took three times as long, on twice the
processor time.

While tests of fleets are left, the first two processes of xdist alone run tests: that which has
them, and one beside it. A file in pytest's cache, which grows by a byte with each fleet that
begins, says so to the others.
"""

import os
import time
from pathlib import Path

import pytest

FLEETS = "tests/e2e/"
BESIDE = 2  # processes that run tests while fleets are left
PAUSE_S = 0.5
MOST_S = 1800.0  # where the process of the fleets has died


def is_fleet(item: pytest.Item) -> bool:
    return item.nodeid.startswith(FLEETS)


def await_turn(item: pytest.Item) -> None:
    """Return when `item` may run; the time that pytest allows it begins then."""
    process = os.environ.get("PYTEST_XDIST_WORKER")
    if process is None or not item.config.pluginmanager.has_plugin("cacheprovider"):
        return
    begun = item.config.cache.mkdir("fleets") / os.environ["PYTEST_XDIST_TESTRUNUID"]
    if is_fleet(item):
        with begun.open("ab") as file:
            file.write(b".")
    elif int(process.removeprefix("gw")) >= BESIDE:
        fleets = sum(map(is_fleet, item.session.items))
        deadline = time.monotonic() + MOST_S
        while _size(begun) < fleets and time.monotonic() < deadline:
            time.sleep(PAUSE_S)


def _size(begun: Path) -> int:
    return begun.stat().st_size if begun.exists() else 0
