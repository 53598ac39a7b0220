"""Processes of all kinds under `tidewheel up` that are killed at random: the account stays exact,
and a federated run that dies again and again goes on from its checkpoints.

Part of `make chaos` alone. TIDEWHEEL_CHAOS_SEED=<number> takes the same chances again.
"""

import contextlib
import os
import signal
import time
from collections import defaultdict

import pytest

from tests.chaos.test_chaos import chance
from tests.e2e.conftest import kafka_place
from tests.rig.processes.fleet import Place, check_account, until
from tests.rig.processes.flower import journals

__all__ = ["kafka_place"]

KILLS, EVERY_S = 20, 6.0
KINDS = {
    "agent": ("edge", "run"),
    "worker": ("compose.cli.main", "worker"),
    "controller": ("compose.cli.main", "controller"),
    "broker": ("kafka.Kafka",),
    "superlink": ("flower-superlink",),
    "superexec": ("flower-superexec",),
    "supernode": ("supernode",),
    "serverapp": ("serverapp",),
    "trainer": ("edge_client.training",),
}

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(900)]


def kinds(place: Place) -> dict[str, list[int]]:
    """The living processes by kind; `up` itself is none."""
    found = defaultdict(list)
    for pid, words in place.marked().items():
        line = " ".join(words)
        for kind, wanted in KINDS.items():
            if all(word in line for word in wanted):
                found[kind].append(pid)
                break
    return found


def runs_ended(place: Place) -> list[str]:
    """The kinds of the last events of runs that have come to a verdict."""
    kinds = [event.kind for run in journals(place.state) for event in run]
    return [kind for kind in kinds if kind in ("promoted", "rejected")]


def test_kills_of_all_kinds_lose_nothing_and_a_run_comes_to_its_end(kafka_place: Place) -> None:
    place = kafka_place
    with chance() as dice:
        running = place.up("up", "--devices", "3", "--speed", "30", "--rounds", "3")
        running.until_said(" started: agreement with the teacher of 1-", 240)
        killed: list[str] = []
        for _ in range(KILLS):
            moment = time.monotonic() + EVERY_S
            until(lambda moment=moment: time.monotonic() > moment, "the next kill")  # type: ignore[misc]
            there = kinds(place)
            kind = dice.choice(sorted(there))
            with contextlib.suppress(ProcessLookupError):
                os.kill(dice.choice(there[kind]), signal.SIGKILL)
                killed.append(kind)
            assert running.process.poll() is None, running.said[-3000:]
        assert len(set(killed)) >= len(KINDS) / 2
        until(lambda: runs_ended(place), f"a run comes to a verdict; killed: {killed}", 300)
        running.signal(signal.SIGINT)
        assert running.ends(180) == 0, running.said[-3000:]
        place.nothing_is_left()
        check_account(place, running.summary())


@pytest.mark.parametrize("kind", ["broker", "agent"])
def test_what_is_killed_just_before_the_end_is_waited_for(kafka_place: Place, kind: str) -> None:
    """A broker of ours answers after twelve seconds, a device sends what it has for ten."""
    place = kafka_place
    running = place.up("up", "--devices", "2", "--speed", "30", "--rounds", "1")
    running.until_said(" started: agreement with the teacher of 1-", 240)
    os.kill(kinds(place)[kind][0], signal.SIGKILL)
    running.signal(signal.SIGINT)
    assert running.ends(180) == 0, running.said[-3000:]
    place.nothing_is_left()
    check_account(place, running.summary())
