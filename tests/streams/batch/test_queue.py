"""The queue against a model of it, and attempts in this process."""

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from streams.batch.jobs import loads
from streams.batch.jobs.job_folder import JobFolder
from streams.batch.queue.attempt import Attempt
from streams.batch.queue.entries import Entry, NewEntry, RunOptions
from streams.batch.queue.job_queue import GONE, JobQueue
from streams.batch.queue.outcome import MAX_PAUSE_S, Retrying
from streams.batch.sinks.sqlite_sink import SqliteSink
from streams.contract.errors import Retryable, TidewheelError, UsageError
from streams.runtime import processes
from streams.runtime.processes import alive, end, this_process
from tests.streams.batch.support import Submitted, good_rows, submitted, write_parquet

HERE = this_process()
DEAD = replace(HERE, started=HERE.started + 1)  # its number has another owner now
ELSEWHERE = replace(HERE, namespace="pid:[1]")
FOREIGN = replace(HERE, machine="another", boot="another")
NO_PAUSE = Retrying(3, 0.0)


class Claims(RuleBasedStateMachine):
    """Jobs by two runners on a clock that the rules move. The model: who may change what."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.now_s = 1000.0
        self.queue = JobQueue(
            Path(self.folder.name), lambda: int(self.now_s * 1e6), lambda: self.now_s
        )
        self.waiting: dict[str, int] = {}  # id: priority, in order of time
        self.held: dict[str, int] = {}  # id: fence
        self.old: list[tuple[str, int]] = []
        self.fences: set[int] = set()
        self.added = 0

    def teardown(self) -> None:
        self.folder.cleanup()

    @precondition(lambda self: self.added < 6)
    @rule(priority=st.integers(0, 2))
    def add(self, priority: int) -> None:
        identity, self.added = f"j{self.added}", self.added + 1
        self.queue.add(NewEntry(identity, "/nowhere", RunOptions(), priority))
        self.waiting[identity] = priority

    @rule(runner=st.sampled_from(["a", "b"]))
    def claim(self, runner: str) -> None:
        found = self.queue.claim(runner, ELSEWHERE, 10.0)
        if not self.waiting:
            assert found is None
            return
        wanted = max(self.waiting, key=lambda i: (self.waiting[i], -int(i[1:])))
        assert found is not None
        assert (found.id, found.runner) == (wanted, runner)
        assert found.fence not in self.fences
        self.fences.add(found.fence)
        self.held[found.id] = found.fence
        self.priorities = {**getattr(self, "priorities", {}), wanted: self.waiting.pop(wanted)}

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def end_one(self, data: st.DataObject) -> None:
        identity = data.draw(st.sampled_from(sorted(self.held)))
        fence = self.held.pop(identity)
        self.old.append((identity, fence))
        if data.draw(st.booleans()):
            assert self.queue.finish(identity, fence, "Completed", "")
        else:
            assert self.queue.again(identity, fence, 0.0, "", failed=False)
            self.waiting[identity] = self.priorities[identity]

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def renew(self, data: st.DataObject) -> None:
        identity = data.draw(st.sampled_from(sorted(self.held)))
        assert self.queue.renew(identity, self.held[identity], 10.0)

    @rule(seconds=st.floats(0, 15))
    def time_passes(self, seconds: float) -> None:
        self.now_s += seconds
        for entry, _ in self.queue.take_back(NO_PAUSE):
            self.old.append((entry.id, self.held.pop(entry.id)))
            self.waiting[entry.id] = self.priorities[entry.id]

    @rule()
    def an_old_claim_changes_nothing(self) -> None:
        for identity, fence in self.old:
            assert not self.queue.renew(identity, fence, 1e6)
            assert not self.queue.hold(identity, fence, 1e6)
            assert not self.queue.again(identity, fence, 0.0, "", failed=True)
            assert not self.queue.finish(identity, fence, "Failed", "")
            assert self.queue.current(identity, fence) is None

    @invariant()
    def it_has_what_the_model_has(self) -> None:
        found = self.queue.entries()
        assert {e.id: e.fence for e in found if not e.waits} == self.held
        assert {e.id: e.priority for e in found if e.waits} == self.waiting


TestClaims = Claims.TestCase
TestClaims.settings = settings(max_examples=12, stateful_step_count=20, deadline=None)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine has an id; some containers have none."""
    monkeypatch.setattr(processes, "machine", lambda: HERE.machine or "this one")


@pytest.mark.usefixtures("machine")
def test_a_lease_is_lost_when_its_time_is_over_or_its_process_is_gone(tmp_path: Path) -> None:
    queue = JobQueue(tmp_path, clock=lambda: 100.0)
    late = JobQueue(tmp_path, clock=lambda: 111.0)
    for claimer, looks, lost in [
        (HERE, queue, False), (HERE, late, True), (DEAD, queue, True), (ELSEWHERE, queue, False),
        (FOREIGN, queue, False), (FOREIGN, late, False),
    ]:  # fmt: skip
        queue.add(NewEntry("j", "/nowhere", RunOptions()))
        claimed = queue.claim("a", claimer, 10.0)
        assert claimed is not None
        assert bool(looks.take_back(NO_PAUSE)) is lost
        assert (queue.current("j", claimed.fence) is None) is lost
        queue.withdraw("j", "Stopped") or queue.finish("j", claimed.fence, "Stopped", "")


def test_a_pause_is_bounded_and_a_clock_that_is_set_back_does_not_prolong_it(
    tmp_path: Path,
) -> None:
    assert Retrying(9, 30.0).pause_s(60) <= MAX_PAUSE_S
    now = 10_000_000_000
    queue = JobQueue(tmp_path, now=lambda: now)
    queue.add(NewEntry("j", "/nowhere", RunOptions()))
    claimed = queue.claim("a", HERE, 10.0)
    assert claimed is not None
    queue.again("j", claimed.fence, 60.0, "", failed=True)
    assert queue.claim("a", HERE, 10.0) is None
    now -= 5_000_000_000
    assert queue.claim("a", HERE, 10.0) is not None


@pytest.mark.usefixtures("machine")
def test_a_process_of_another_container_or_machine_is_neither_judged_nor_killed() -> None:
    for process in (ELSEWHERE, FOREIGN):
        assert alive(process) is None
        assert end(process) is False
    assert (alive(DEAD), alive(replace(HERE, boot="other"))) == (False, False)
    assert alive(HERE) is True


# --- attempts -------------------------------------------------------------------------------------


@dataclass
class Queued:
    """A submitted job in a queue."""

    queue: JobQueue
    job: Submitted

    def claim(self) -> Entry:
        """As for a process that is not this one, which worked for the claim before."""
        found = self.queue.claim("a", HERE, 30.0)
        assert found is not None
        self.queue._change(found.id, found.fence, "previous = '[]'")
        return found

    def attempt(self, run: Any, entry: Entry | None = None, **more: Any) -> Attempt:
        entry = entry or self.claim()
        return Attempt(
            self.queue, entry.id, entry.fence, submit=lambda _: None, run=run, retrying=NO_PAUSE,
            **more,
        )  # fmt: skip

    def runs(self, entry: Entry, lock: int) -> None:
        self.job.run(lock=lock, from_queue=True)

    @property
    def state(self) -> str:
        return self.job.folder.state().state


@pytest.fixture
def queued(tmp_path: Path) -> Queued:
    write_parquet(tmp_path / "in.parquet", good_rows(5))
    job = submitted(tmp_path, tmp_path / "in.parquet")
    queue = JobQueue(tmp_path / "state")
    identity = job.folder.specification().id
    queue.add(NewEntry(identity, str(job.folder.folder), RunOptions()))
    job.folder.write_state("Scheduled")
    return Queued(queue, job)


def fails_of(queued: Queued, error: Exception) -> Any:
    def run(_entry: Entry, _lock: int) -> None:
        raise error

    return run


def test_what_may_pass_is_tried_again_a_few_times(queued: Queued) -> None:
    run = fails_of(queued, Retryable("the database is away"))
    for _ in range(2):
        found = queued.attempt(run).work()
        assert found is not None
        assert found.again_s == 0.0
        assert queued.queue.entries()[0].reason == "the database is away"
    last = queued.attempt(run).work()
    assert last is not None
    assert (last.state, last.again_s) == ("Failed", None)
    assert (queued.state, queued.queue.entries()) == ("Failed", [])


def test_a_job_that_was_stopped_while_it_was_claimed_does_not_begin(queued: Queued) -> None:
    entry = queued.claim()
    queued.job.folder.request_stop(True)
    found = queued.attempt(queued.runs, entry).work()
    assert found is not None
    assert (found.state, found.again_s, queued.state) == ("Stopped", None, "Stopped")
    assert not queued.job.output.exists()


def test_what_does_not_pass_fails_at_once(queued: Queued) -> None:
    found = queued.attempt(fails_of(queued, UsageError("the input has changed"))).work()
    assert found is not None
    assert (found.state, found.again_s, queued.state) == ("Failed", None, "Failed")


def test_a_job_that_failed_of_its_database_is_scheduled_and_then_completed(queued: Queued) -> None:
    def away(_entry: Entry, _lock: int) -> None:
        queued.job.folder.write_state("Failed", "away", passing=True)

    found = queued.attempt(away).work()
    assert found is not None
    assert found.again_s == 0.0
    assert queued.state == "Scheduled"
    assert queued.attempt(queued.runs).work() is not None
    assert (queued.state, len(queued.job.rows())) == ("Completed", 5)


def test_a_job_whose_database_stays_away_has_failed_of_what_may_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object) -> None:
        raise Retryable("the database is away")

    write_parquet(tmp_path / "in.parquet", good_rows(5))
    job = submitted(tmp_path, tmp_path / "in.parquet", to="out.sqlite")
    monkeypatch.setattr(loads, "TRIES", 1)
    with monkeypatch.context() as patched:
        patched.setattr(SqliteSink, "load", away)
        assert job.run().state == "Failed"
    assert job.folder.state().passing
    assert job.run().state == "Completed"
    assert not job.folder.state().passing


class Killed(BaseException):
    """What a step raises in place of SIGKILL."""


@pytest.mark.parametrize("step", [2, 3, 4, 5, 6, 7])
@pytest.mark.parametrize("passing", [False, True])
def test_an_attempt_that_ends_at_any_step_is_followed_by_one_that_ends_the_job(
    queued: Queued, step: int, passing: bool
) -> None:
    def reached(point: str) -> None:
        if point == f"attempt-step-{step}":
            raise Killed

    def away(_entry: Entry, _lock: int) -> None:
        queued.job.folder.write_state("Failed", "away", passing=True)

    entry = queued.claim()
    try:
        queued.attempt(away if passing else queued.runs, entry, reached=reached).work()
    except Killed:
        over = queued.queue.entries() == []
        if not over and queued.queue.current(entry.id, entry.fence):
            queued.queue._take(queued.queue.entries()[0], 0.0, GONE, failed=False)
    while queued.queue.entries():
        entry = queued.claim()
        queued.attempt(queued.runs, entry).work()
    assert (queued.state, len(queued.job.rows())) == ("Completed", 5)


def test_an_attempt_under_an_old_fence_writes_nothing(queued: Queued) -> None:
    old = queued.claim()
    queued.queue._take(old, 0.0, GONE, failed=False)
    assert queued.attempt(queued.runs, old).work() is None
    assert not queued.queue.register(old, HERE, 30.0)
    new = queued.claim()

    def reached(point: str) -> None:
        if point == "attempt-step-2":  # the claim is taken away while it waits for the folder
            queued.queue._take(replace(queued.queue.entries()[0]), 0.0, GONE, failed=False)

    assert queued.attempt(queued.runs, new, reached=reached).work() is None
    assert queued.state == "Scheduled"
    assert not queued.job.output.exists()


def test_all_processes_of_earlier_claims_are_known_until_the_folder_is_held(queued: Queued) -> None:
    queue, found = queued.queue, []
    for number in range(3):
        entry = queue.claim("a", HERE, 30.0)
        assert entry is not None
        found.append(replace(ELSEWHERE, pid=number))
        assert queue.register(entry, found[-1], 30.0)
        queue._take(queue.entries()[0], 0.0, GONE, failed=False)
    assert queue.entries()[0].previous == tuple(found)
    entry = queue.claim("a", HERE, 30.0)
    assert entry is not None
    assert queue.register(entry, HERE, 30.0)
    assert queue.hold(entry.id, entry.fence, 30.0)
    assert queue.entries()[0].previous == ()


def test_a_job_whose_process_cannot_be_ended_waits_until_it_is_gone(queued: Queued) -> None:
    """As one in another container, or of another user."""
    with JobFolder(queued.job.folder.folder).locked():
        found = queued.attempt(queued.runs, hold_wait_s=0.1).work()
    assert found is not None
    assert found.again_s is not None
    assert "works on the job" in found.reason
    assert queued.queue.entries()[0].failures == 0
    assert not queued.job.output.exists()


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.binary(max_size=200))
def test_a_damaged_file_of_the_queue_is_one_line(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "queue.sqlite").write_bytes(b"SQLite format 3\0" + data)
    with pytest.raises(TidewheelError, match=r"queue\.sqlite"):
        JobQueue(tmp_path).add(NewEntry("j", "/nowhere", RunOptions()))
