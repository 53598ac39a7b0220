"""The queue and its runner in this process: order, retries, crashes at each step."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from streams.batch.jobs.job import Job
from streams.batch.jobs.job_queue import DIED, MAX_PAUSE_US, Entry, Event, JobQueue, Runner
from streams.batch.progress import OVER, State
from streams.batch.specification import Settings
from streams.contract.errors import TidewheelError, UsageError
from streams.runtime.failpoints import Failpoint, unarmed
from tests.rig.made_up.killed import Killed, killed_at
from tests.rig.made_up.models import tiny
from tests.streams.batch.support import SMALL, Submitted, good_rows, submitted, write_parquet

PLAIN = Settings(task="t", inputs=["i"], to="o")
Work = Callable[[Entry], object]


class Here:
    """The process of an attempt, in this one: it has ended when it is looked at."""

    def __init__(self, work: Work, entry: Entry) -> None:
        with suppress(Killed):
            work(entry)

    def poll(self) -> int | None:
        return 0

    wait = terminate = kill = poll  # type: ignore[assignment]


@dataclass
class Queued:
    """A queue, its jobs, and the runners of it."""

    queue: JobQueue
    place: Path
    now_us: int = 10**15
    told: list[Event] = field(default_factory=list)
    turns: int = 0

    def add(self, name: str = "out", expires_after: float | None = None) -> Submitted:
        path = write_parquet(self.place / f"{name}.parquet", good_rows(30))
        job = submitted(self.place, path, to=name)
        found = job.folder.specification()
        settings = found.settings.changed(expires_after=expires_after)
        self.queue.add(Entry(found.id, str(job.folder.folder), settings))
        job.folder.write_state("Scheduled")
        return job

    def work(self, entry: Entry, reached: Failpoint = unarmed) -> None:
        """Steps 2 and 3, as the process of an attempt does them."""
        if entry.attempts == 1 or entry.job.state().state not in OVER:
            Job(entry.job, tiny, shard_sizes=SMALL, reached=reached, from_queue=True).run()
        reached("attempt-step-3")

    def run(self, work: Work | None = None, **more: Any) -> list[str]:
        """Run what is due to its end, as if all pauses were over; return what was reported."""
        self.told.clear()

        def wait(_seconds: float) -> bool:
            self.now_us += MAX_PAUSE_US
            self.turns += 1
            assert self.turns < 100
            return False

        Runner(
            self.queue, lambda entry, _: Here(work or self.work, entry), self.told.append, wait,
            max_attempts=3, **more,
        ).run(until_empty=True)  # fmt: skip
        return [event.kind for event in self.told]


@pytest.fixture
def queued(tmp_path: Path) -> Queued:
    found = Queued(JobQueue(tmp_path / "state"), tmp_path)
    found.queue = JobQueue(tmp_path / "state", now=lambda: found.now_us)
    return found


def state(job: Submitted) -> str:
    return job.folder.state().state


def whole(job: Submitted) -> None:
    assert (state(job), [row["row"] for row in job.rows()]) == ("Completed", list(range(30)))


def test_the_oldest_runs_first(queued: Queued) -> None:
    jobs = [queued.add(name) for name in ("b", "a", "c")]
    assert queued.run() == ["begins", "ended"] * 3
    begun = [event.job for event in queued.told if event.kind == "begins"]
    assert begun == [job.folder.specification().id for job in jobs]
    for job in jobs:
        whole(job)


def test_a_job_beyond_what_may_wait_is_refused(queued: Queued) -> None:
    queue = JobQueue(queued.queue.state, max_waiting=1)
    queue.add(Entry("a", str(queued.place / "a"), PLAIN))
    with pytest.raises(UsageError, match=r"1 jobs wait in .*, 1 may"):
        queue.add(Entry("b", str(queued.place / "b"), PLAIN))
    with pytest.raises(UsageError, match="the job a is queued already"):
        JobQueue(queued.queue.state).add(Entry("a", str(queued.place / "a"), PLAIN))


def test_a_job_whose_folder_another_process_holds_is_left_to_it(queued: Queued) -> None:
    first, second = queued.add("first"), queued.add("second")
    with first.folder.locked():
        found = queued.queue.take()
        assert found is not None
        entry, lock = found
        assert entry.id == second.folder.specification().id
        assert queued.queue.take() is None
        lock.close()
    found = queued.queue.take()
    assert found is not None
    assert found[0].id == first.folder.specification().id
    found[1].close()


@pytest.mark.parametrize(
    ("reason", "again"), [(DIED, 2), ("the database is away", 2), ("the input has changed", 0)]
)
def test_what_may_pass_is_tried_again_a_few_times_and_all_else_fails_at_once(
    queued: Queued, reason: str, again: int
) -> None:
    job = queued.add()

    def fails(entry: Entry) -> None:
        if reason == DIED:
            raise Killed
        entry.job.write_state("Failed", reason, passing=again > 0)

    assert queued.run(fails) == [*["begins", "again"] * again, "begins", "ended"]
    assert (state(job), job.folder.state().reason) == ("Failed", reason)


@pytest.mark.parametrize("asked", [True, False])
def test_a_stop_is_the_users_or_that_of_its_runner(queued: Queued, asked: bool) -> None:
    job = queued.add()
    found: list[State] = ["Stopped"] if asked else ["Stopped", "Completed"]

    def stopped(entry: Entry) -> None:
        entry.job.request_stop(asked)
        entry.job.write_state(found[entry.attempts - 1])

    queued.run(stopped)
    assert (state(job), queued.queue.entries()) == (found[-1], [])


def test_a_pause_is_bounded_and_a_clock_that_is_set_back_does_not_prolong_it(
    queued: Queued,
) -> None:
    queued.queue.add(Entry("j", str(queued.place / "j"), PLAIN))
    entry = queued.queue.entries()[0]
    queued.queue.again(entry, 60.0, "", failed=True)
    assert queued.queue.take() is None
    queued.now_us -= 10**12
    found = queued.queue.take()
    assert found is not None
    found[1].close()


def test_a_job_that_has_waited_too_long_expires(queued: Queued) -> None:
    late = queued.add("late", expires_after=60.0)
    queued.now_us += 60_000_000
    assert (queued.run(), state(late)) == (["expired"], "Expired")
    assert not late.output.exists()


def test_of_a_backfill_only_a_few_run_at_once(queued: Queued) -> None:
    for name in "abc":
        folder = str(queued.place / name)
        queued.queue.add(Entry(name, folder, PLAIN, backfill="nightly/1"))
    taken = [queued.queue.take() for _ in range(3)]
    assert [found and found[0].id for found in taken] == ["a", "b", None]
    for found in taken:
        if found is not None:
            found[1].close()


@pytest.mark.parametrize("step", [1, 2, 3, 4])
@pytest.mark.parametrize("of", ["the runner", "the attempt"])
def test_an_attempt_that_ends_at_any_step_is_followed_by_one_that_ends_the_job(
    queued: Queued, step: int, of: str
) -> None:
    job, crash = queued.add(), killed_at(f"attempt-step-{step}")
    inside = killed_at("score-step-4", step) if step < 3 else crash
    if of == "the runner":
        with suppress(Killed):
            queued.run(reached=crash)
    else:
        queued.run(lambda entry: queued.work(entry, inside))
    queued.run()
    whole(job)
    assert queued.queue.entries() == []


@pytest.mark.parametrize("data", [b"", b"{", b"[1]", b"\xff", b'{"id": "\xff"}', b"[" * 100_000])
def test_a_damaged_file_of_the_queue_is_one_line(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "queue").mkdir()
    (tmp_path / "queue" / "1-j.json").write_bytes(data)
    with pytest.raises(TidewheelError, match=r"1-j\.json cannot be read"):
        JobQueue(tmp_path).entries()
