"""Workers and brokers that are killed at random under load, and what the store and the topics hold.

Real processes and a real Kafka, by `make chaos`. Moments and load come from a seed, which a failure
names; TIDEWHEEL_CHAOS_SEED=<number> takes the same one again. The processes' own timing is not in
it, so that a failure need not come back at once.
"""

import contextlib
import os
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from streams.kafka.reader import partition_of
from streams.kafka.settings import BrokerSettings
from streams.worker.store.query import server_account
from tests.rig.asked import asked
from tests.rig.processes.forks import Forked
from tests.rig.processes.load import Load
from tests.rig.processes.workers import Fleet, all_published, check_topics, fleet, stop, until

KILLS = 30
OUTAGE_S = 20.0  # and some 10 s until a Kafka that was killed answers after its start
UPKEEP_EVERY = 16  # commits of a partition: every few seconds
BETWEEN_KILLS = (15, 120)  # batches of the load, about 32 of which are made in a second
DRAIN_S = 120.0
DEATHS = 10  # of workers by themselves, above which something else is wrong

PARTITIONS = 4
SHARED_BY_THREE = 6  # of 4, Faust's assignor leaves two to each of the first two workers
DEVICES = 8

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(900)]


def device_names(partitions: int) -> list[str]:
    """DEVICES devices, as evenly on the partitions as can be."""
    names = [f"d{n}" for n in range(200)]
    on = [[n for n in names if partition_of(n, partitions) == p] for p in range(partitions)]
    return [on[n % partitions][n // partitions] for n in range(DEVICES)]


class Crew:
    """The workers of a fleet; who ends by itself is started again, as a supervisor does."""

    def __init__(self, served: Fleet) -> None:
        self._served = served
        self._all = list(range(served.partitions))
        self._running: dict[str, Forked] = {}
        self._since: dict[str, int] = {}
        self.died: list[str] = []

    def start(self, instance: str) -> None:
        self._since[instance] = len(self._served.log(instance))
        self._running[instance] = self._served.start(instance)

    def kill(self, instance: str) -> None:
        """SIGKILL, and started again at once."""
        self._running[instance].kill()
        self._running[instance].wait(10)
        self.start(instance)

    def end(self, instance: str) -> int:
        """SIGTERM; the exit code."""
        return stop(self._running.pop(instance))

    def partitions(self, instance: str) -> set[int]:
        """What the worker said last that it has, since it was started."""
        said = self._served.log(instance)[self._since[instance] :]
        found = re.findall(rf"worker {instance}: ready, partitions \[(.*)\]", said)
        return {int(text) for text in found[-1].split(",") if text} if found else set()

    def shares_all(self) -> bool:
        """Whether each partition is at one worker, and each worker has one."""
        each = [self.partitions(instance) for instance in self._running]
        return all(each) and sorted(p for found in each for p in found) == self._all

    def look(self) -> None:
        for instance, process in list(self._running.items()):
            code = process.poll()
            if code is not None:
                said = self._served.log(instance)[self._since[instance] :]
                self.died.append(f"{instance} ended with code {code}: {said[-1500:]}")
                assert len(self.died) <= DEATHS, "\n".join(self.died)
                self.start(instance)

    def until(self, condition: Callable[[], bool], what: str, timeout_s: float = 60.0) -> None:
        """Wait for a condition and keep the workers running."""

        def met() -> bool:
            self.look()
            return condition()

        until(met, what, timeout_s, pause_s=0.2)


@contextlib.contextmanager
def busy_fleet(kafka: BrokerSettings, folder: Path, partitions: int) -> Iterator[Fleet]:
    """A fleet whose workers keep up the store all the time."""
    with fleet(kafka, folder, partitions) as made:
        made.options["upkeep_every"] = UPKEEP_EVERY
        yield made


@contextlib.contextmanager
def chance(logs: Path | None = None) -> Iterator[random.Random]:
    """Chance from a seed that a failure tells, with what the workers said last."""
    seed = int(os.environ.get("TIDEWHEEL_CHAOS_SEED") or random.SystemRandom().randrange(10**6))
    try:
        yield random.Random(seed)
    except BaseException as exc:
        exc.add_note(f"TIDEWHEEL_CHAOS_SEED={seed}")
        for log in sorted(logs.glob("w*.log")) if logs else ():
            exc.add_note(f"the end of {log}: {log.read_text(errors='replace')[-2000:]}")
        raise


@contextlib.contextmanager
def load_on(served: Fleet, dice: random.Random) -> Iterator[Load]:
    load = Load(served.broker, served.task, device_names(served.partitions), dice.randrange(10**6))
    load.start()
    try:
        yield load
    finally:
        load.close()


@contextlib.contextmanager
def crew_of(served: Fleet, *instances: str) -> Iterator[Crew]:
    """Workers that have shared the partitions among themselves."""
    crew = Crew(served)
    for instance in instances:
        crew.start(instance)
    crew.until(crew.shares_all, f"{instances} share the partitions")
    yield crew


def more(load: Load, batches: int) -> Callable[[], bool]:
    """The condition that the load has made so many more batches."""
    wanted = load.batches + batches
    return lambda: load.batches >= wanted


def stored(served: Fleet) -> int:
    found = asked(served.store, "select count(*) from scores")
    return int(found[0][0]) if found else 0


def account(load: Load) -> dict[tuple[str, str], tuple[int, int]]:
    """What `server_account` is to say."""
    sources = load.sent.keys() | load.dropped.keys()
    return {s: (len(load.sent.get(s, ())), len(load.dropped.get(s, ()))) for s in sources}


def check(served: Fleet, crew: Crew, load: Load) -> None:
    """After the load: each event once in the store or declared dropped, each revision on both
    topics with one content, and nothing given up."""
    load.finish()
    expected = account(load)
    crew.until(lambda: server_account(served.store) == expected, "the account is whole", DRAIN_S)
    found = asked(served.store, "select device, epoch, seq from scores")
    assert len(found) == len(set(found))
    assert set(found) == {(d, e, seq) for (d, e), seqs in load.sent.items() for seq in seqs}
    declared = asked(served.store, "select device, epoch, first, last from drops")
    assert {(d, e, seq) for d, e, first, last in declared for seq in range(first, last + 1)} == {
        (d, e, seq) for (d, e), seqs in load.dropped.items() for seq in seqs
    }
    crew.until(lambda: all_published(served), "all revisions are published", DRAIN_S)
    check_topics(served)
    assert served.read("dead-letters") == []


def test_workers_that_are_killed_at_random_lose_and_double_nothing(
    kafka: BrokerSettings, tmp_path: Path
) -> None:
    with (
        busy_fleet(kafka, tmp_path, PARTITIONS) as served,
        chance(served.folder) as dice,
        crew_of(served, "w0", "w1") as crew,
        load_on(served, dice) as load,
    ):
        for n in range(KILLS):
            moment = more(load, dice.randint(*BETWEEN_KILLS))
            crew.until(moment, f"the moment of kill {n} comes")
            crew.kill(dice.choice(["w0", "w1"]))
        check(served, crew, load)


def test_a_worker_that_joins_and_leaves_under_load_loses_and_doubles_nothing(
    kafka: BrokerSettings, tmp_path: Path
) -> None:
    with (
        busy_fleet(kafka, tmp_path, SHARED_BY_THREE) as served,
        chance(served.folder) as dice,
        crew_of(served, "w0", "w1") as crew,
        load_on(served, dice) as load,
    ):
        crew.until(lambda: stored(served) > 100, "the two workers score")
        crew.start("w2")
        crew.until(crew.shares_all, "three workers share the partitions")
        before = stored(served)
        crew.until(lambda: stored(served) > before + 500, "the three workers score")
        assert crew.end("w2") == 0
        crew.until(crew.shares_all, "the two workers share the partitions again")
        check(served, crew, load)
        assert crew.died == []  # none was killed
