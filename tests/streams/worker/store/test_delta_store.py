import dataclasses
import re
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from deltalake import DeltaTable
from deltalake.exceptions import CommitFailedError

from streams.contract.accounting import IntervalSet
from streams.contract.errors import PartitionLost, TidewheelError, UsageError
from streams.contract.task import Task, Tumbling
from streams.learning.drift_reference import WINDOWS
from streams.runtime import files
from streams.worker.store import delta_store
from streams.worker.store.delta_store import DeltaStore
from streams.worker.store.position import snapshot_name, write_snapshot
from streams.worker.store.query import open_store, server_account
from streams.worker.store.tables import (
    DROPS,
    LABELS,
    SCORES,
    TABLES,
    Place,
    drop_schema,
    label_rows,
    open_table,
)
from streams.worker.windows.partition import NewLabels, StorePosition
from streams.worker.windows.rows import ScoredWindow, score_rows
from streams.worker.windows.tumbling import Message, Window, split
from tests.rig.asked import asked
from tests.rig.made_up.tiny_task import task
from tests.rig.processes.workers import SECOND, events, labels


@pytest.fixture(params=["folder", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """Where a store may be."""
    if request.param == "folder":
        return tmp_path
    request.getfixturevalue("s3_environ")
    return f"s3://models/{tmp_path.name}"


def rows(
    first: int,
    times_s: list[float],
    *,
    partition: int = 0,
    commit: int = 1,
    revision: int = 0,
    drift: str | None = None,
    task: Task = task,
) -> pa.Table:
    pieces = tuple(split(task, Message(0, None), events("d0", first, times_s, task=task)))
    windows = [Window(partition, "d0", piece.window, (piece,)) for piece in pieces]
    scored = [
        ScoredWindow(w, np.zeros((w.rows, task.outputs), np.float32), revision, commit, drift)
        for w in windows
    ]
    return score_rows(task, "1-teacher", scored)


def drops(first: int, last: int, *, commit: int = 1, reason: str = "full") -> pa.Table:
    values = ["d0", "e1", first, last, reason, 0, commit, 0]
    schema = drop_schema()
    columns = [
        pa.array([v], f.type) if f.name != "day" else pa.array([v], pa.int32()).cast(f.type)
        for v, f in zip(values, schema, strict=True)
    ]
    return pa.Table.from_arrays(columns, schema=schema)


def test_the_position_is_read_from_the_rows(place: Place) -> None:
    store = DeltaStore(place)
    store.commit(SCORES, rows(0, [1, 2, 3]), {0: 1})
    store.commit(SCORES, rows(7, [11, 12], commit=2), {0: 2})
    store.commit(DROPS, drops(3, 4), {0: 1})
    store.commit(DROPS, drops(20, 22, commit=2, reason="teacher-failed"), {0: 2})
    position = DeltaStore(place).position(0)
    assert (position.commit, position.commits[DROPS]) == (2, 2)
    assert position.taken == {("d0", "e1"): IntervalSet([(0, 2), (7, 8), (20, 22)])}
    assert position.refused == {("d0", "e1"): IntervalSet([(20, 22)])}
    assert position.dropped == {("d0", "e1"): IntervalSet([(3, 4), (20, 22)])}
    assert position.watermark == {"d0": 12 * SECOND}
    assert position.newest == {"d0": 10 * SECOND}
    assert DeltaStore(place).position(1).taken == {}


def test_two_owners_of_a_partition_cannot_both_commit(place: Place) -> None:
    one, two = DeltaStore(place), DeltaStore(place)
    one.commit(SCORES, rows(0, [1]), {0: 1})
    with pytest.raises(PartitionLost, match="partition 0"):
        two.commit(SCORES, rows(0, [1]), {0: 1})
    assert asked(place, "select count(*) from scores") == [(1,)]


def test_a_commit_from_a_stale_snapshot_is_fenced_by_the_table(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other owner commits between the look at the version and the write."""
    one, two = DeltaStore(place), DeltaStore(place)
    one.commit(SCORES, rows(0, [1]), {0: 1})
    monkeypatch.setattr(DeltaTable, "update_incremental", lambda _table: None)
    with pytest.raises(PartitionLost):
        two.commit(SCORES, rows(0, [1]), {0: 1})


def test_the_rows_of_one_commit_come_back_as_they_were(tmp_path: Path) -> None:
    store = DeltaStore(tmp_path)
    given = rows(3, [1, 2, 8, 86_400], commit=2)
    store.commit(SCORES, rows(0, [1]), {0: 1})
    store.commit(SCORES, given, {0: 2})
    found = store.rows_of(0, 2).sort_by("seq")
    assert found.schema.names == given.schema.names
    assert found.to_pylist() == given.to_pylist()


def test_revisions_count_the_reports_of_a_window(tmp_path: Path) -> None:
    store = DeltaStore(tmp_path)
    for commit, revision in enumerate((0, 1, 2), start=1):
        store.commit(SCORES, rows(commit, [1], commit=commit, revision=revision), {0: commit})
    keys = [("d0", 0), ("d0", 5 * SECOND), ("other", 0)]
    assert store.revisions(0, keys) == {keys[0]: 3, keys[1]: 0, keys[2]: 0}
    assert store.revisions(1, keys[:1]) == {keys[0]: 0}


def test_upkeep_keeps_rows_positions_and_fence(tmp_path: Path) -> None:
    store = DeltaStore(tmp_path)
    store.commit(DROPS, drops(100, 104, reason="teacher-failed"), {0: 1})
    store.commit(DROPS, drops(200, 204, commit=2), {0: 2})
    for commit in range(1, 61):  # beyond a checkpoint of the log
        store.commit(
            SCORES, rows(commit, [5 * commit], commit=commit, drift=f"d{commit}"), {0: commit}
        )
        if commit % 8 == 0:
            before = DeltaStore(tmp_path).position(0)
            DeltaStore(tmp_path).keep_up(0)
            assert DeltaStore(tmp_path).position(0) == dataclasses.replace(
                before, drift={"d0": before.drift["d0"][-WINDOWS:]}
            )
    store.commit(SCORES, rows(102, [900.0], commit=61), {0: 61})
    store.commit(DROPS, drops(205, 206, commit=3), {0: 3})
    again, path = DeltaStore(tmp_path), tmp_path / "positions" / "0.jsonl.zst"
    found = again.position(0)
    path.unlink()
    assert found.taken == again.position(0).taken
    assert found.taken == {("d0", "e1"): IntervalSet([(1, 60), (100, 104)])}
    assert found.refused == {("d0", "e1"): IntervalSet([(100, 101), (103, 104)])}
    assert found.dropped == {("d0", "e1"): IntervalSet([(100, 104), (200, 206)])}
    assert (found.commit, found.commits[DROPS]) == (61, 3)
    assert found.watermark == {"d0": 900 * SECOND}
    assert again.rows_of(0, 60).column("seq").to_pylist() == [60]
    assert len(open_table(tmp_path, SCORES).file_uris()) < 30
    with pytest.raises(PartitionLost):
        again.commit(SCORES, rows(60, [60], commit=60), {0: 60})


def test_upkeep_of_a_store_in_a_bucket_keeps_rows_positions_and_fence(s3_environ: None) -> None:
    place = "s3://models/upkeep"
    store = DeltaStore(place)
    for commit in range(1, 13):
        store.commit(SCORES, rows(commit, [5 * commit], commit=commit), {0: commit})
    before = DeltaStore(place).position(0)
    DeltaStore(place).keep_up(0, keep_days=1.0)
    assert snapshot_name(0).rpartition("/")[2] in files.open_store(place).names("positions")
    store.commit(SCORES, rows(13, [65], commit=13), {0: 13})
    again = DeltaStore(place)
    found = again.position(0)
    files.open_store(place).remove(snapshot_name(0))
    assert before.taken == {("d0", "e1"): IntervalSet([(1, 12)])}
    assert found.taken == again.position(0).taken == {("d0", "e1"): IntervalSet([(1, 13)])}
    assert len(open_table(place, SCORES).file_uris()) < 6
    assert server_account(place) == {("d0", "e1"): (13, 0)}
    with pytest.raises(PartitionLost):
        again.commit(SCORES, rows(13, [65], commit=13), {0: 13})


def test_the_credentials_of_a_bucket_may_be_in_a_file(
    s3_environ: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    file = tmp_path / "credentials"
    file.write_text("[default]\naws_access_key_id = a\naws_secret_access_key = b\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    DeltaStore("s3://models/file").commit(SCORES, rows(0, [1]), {0: 1})
    assert DeltaStore("s3://models/file").position(0).commit == 1


def test_a_bucket_that_is_not_there_is_said_in_a_line(s3_environ: None) -> None:
    with pytest.raises(TidewheelError, match=r"the store s3://nowhere/store/scores cannot be used"):
        DeltaStore("s3://nowhere/store")
    with pytest.raises(UsageError, match="s3://models/empty is not a store"):
        open_store("s3://models/empty")


@pytest.mark.parametrize("kind", ["garbage", "ahead", "another"])
def test_a_snapshot_that_does_not_fit_is_passed_over(kind: str, tmp_path: Path) -> None:
    store = DeltaStore(tmp_path / "a")
    store.commit(SCORES, rows(0, [1, 2]), {0: 1})
    path = tmp_path / "a" / snapshot_name(0)
    ids = [str(open_table(tmp_path / "a", name).metadata().id) for name in TABLES]
    ids = ["other", "tables"] if kind == "another" else ids
    wrong = StorePosition(
        Counter({SCORES: 9 if kind == "ahead" else 1}), taken={("d0", "e1"): IntervalSet([(5, 9)])}
    )
    write_snapshot(tmp_path / "a", 0, wrong, ids)
    if kind == "garbage":
        path.write_bytes(path.read_bytes()[:-3] + b"xxx")
    assert store.position(0).taken == {("d0", "e1"): IntervalSet([(0, 1)])}


def test_upkeep_and_commits_do_not_disturb_each_other(tmp_path: Path) -> None:
    """Two owners commit while upkeep runs all the time: nothing is lost, and nobody is fenced."""
    DeltaStore(tmp_path)
    ended = threading.Event()

    def keep_up(partition: int) -> None:
        while not ended.is_set():
            DeltaStore(tmp_path).keep_up(partition)

    def commit(partition: int) -> None:
        store = DeltaStore(tmp_path)
        for n in range(1, 41):
            one = rows(n, [n], partition=partition, commit=n)
            store.commit(SCORES, one, {partition: n})

    with ThreadPoolExecutor() as pool:
        keeping = [pool.submit(keep_up, p) for p in (0, 1)]
        for owner in [pool.submit(commit, p) for p in (0, 1)]:
            owner.result(60)
        ended.set()
        for one in keeping:
            one.result(60)
    for partition in (0, 1):
        position = DeltaStore(tmp_path).position(partition)
        assert position.commit == 40
        assert position.taken == {("d0", "e1"): IntervalSet([(1, 40)])}
    query = "select count(*), count(distinct (partition, seq)) from scores"
    assert asked(tmp_path, query) == [(80, 80)]


def test_the_account_counts_an_event_that_came_after_its_drop_as_scored(tmp_path: Path) -> None:
    store = DeltaStore(tmp_path)
    store.commit(DROPS, drops(2, 9), {0: 1})
    store.commit(SCORES, rows(0, [1, 2, 3, 4]), {0: 1})
    assert server_account(tmp_path) == {("d0", "e1"): (4, 6)}


def test_uncommitted_files_are_not_read(tmp_path: Path) -> None:
    store = DeltaStore(tmp_path)
    store.commit(SCORES, rows(0, [1]), {0: 1})
    committed = next((tmp_path / SCORES).rglob("*.parquet"))
    (committed.parent / "part-left-over.parquet").write_bytes(committed.read_bytes())
    assert server_account(tmp_path) == {("d0", "e1"): (1, 0)}


def test_a_store_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TidewheelError, match="file"):
        DeltaStore(tmp_path / "file")


def told(first: int, spans: list[tuple[float, float]], commit: int, **given: object) -> pa.Table:
    one = NewLabels(Message(0, None), labels("d0", first, spans, **given))  # type: ignore[arg-type]
    return label_rows([(0, one)], {0: commit}, 0)


def test_the_position_knows_the_labels_of_rows_and_snapshot(tmp_path: Path) -> None:
    store = DeltaStore(tmp_path)
    store.commit(SCORES, rows(0, [1, 2, 3]), {0: 1})
    store.commit(LABELS, told(0, [(1, 1), (2, 2)], 1), {0: 1})
    store.keep_up(0)
    store.commit(LABELS, told(5, [(3, 3)], 2), {0: 2})
    position = DeltaStore(tmp_path).position(0)
    assert position.commits[LABELS] == 2
    assert position.labelled == {("d0", "l1"): IntervalSet([(0, 1), (5, 5)])}
    with pytest.raises(PartitionLost, match="labels has its commit 2"):
        store.commit(LABELS, told(6, [(3, 3)], 2), {0: 2})


def test_events_of_one_time_have_each_its_own_label(tmp_path: Path) -> None:
    store = DeltaStore(tmp_path)
    store.commit(SCORES, rows(0, [1, 1, 1, 2]), {0: 1})
    spans: list[tuple[float, float]] = [(1, 1), (1, 1), (0, 2)]
    store.commit(LABELS, told(0, spans, 1, classes=[1, 2, 1], events=[1, 2, 3]), {0: 1})
    found = asked(tmp_path, "select seq, label[1] from labelled order by seq")
    assert found == [(0, 0.0), (1, 1.0), (2, 2.0), (3, 1.0)]


def test_the_label_that_was_told_last_counts(tmp_path: Path) -> None:
    """An event's own label, one of an instant, and one of an interval."""
    store = DeltaStore(tmp_path)
    store.commit(SCORES, rows(0, [1, 2, 3, 4]), {0: 1})  # events 0 and 3 have a label, 0
    first = told(0, [(2, 2), (3, 3), (9, 9)], 1, classes=[1, 2, 0], told_s=10.0)
    store.commit(LABELS, first, {0: 1})
    store.commit(LABELS, told(3, [(2.5, 5)], 2, classes=[1], told_s=20.0), {0: 2})
    found = asked(
        tmp_path,
        "select seq, label[1], source, epoch_us(told) // 1000000 from labelled order by seq",
    )
    [(before,)] = asked(tmp_path, "select count(label) from scores")
    assert found == [
        (0, 0.0, "event", None), (1, 1.0, "outcome", 10), (2, 1.0, "outcome", 20),
        (3, 1.0, "outcome", 20),
    ]  # fmt: skip
    assert before == 2


def test_correct_is_of_the_label_that_counts_or_null(tmp_path: Path) -> None:
    """Of the events 0, 3 and 6, which came with the label 0, 3 gets another one and 6 the same;
    event 1 gets its first."""
    store = DeltaStore(tmp_path)
    store.commit(SCORES, rows(0, [1, 2, 3, 4, 5, 6, 7]), {0: 1})
    answers = [
        int(np.argmax(outputs))
        for (outputs,) in asked(tmp_path, "select outputs from scores order by seq")
    ]
    classes = [answers[1], 1, 0]
    late = told(0, [(2, 2), (4, 4), (7, 7)], 1, classes=classes, told_s=10.0)
    store.commit(LABELS, late, {0: 1})
    page = (Path(__file__).parents[4] / "docs" / "how-to" / "own-task.md").read_text()
    (right,) = re.findall(r"`avg\((\(list_position[^`]*\))::int\)`", page)
    found = asked(tmp_path, f"select correct, {right} from labelled order by seq")
    assert found == [
        (answers[0] == 0, answers[0] == 0), (None, True), (None, None),
        (None, answers[3] == 1), (None, None), (None, None), (answers[6] == 0, answers[6] == 0),
    ]  # fmt: skip


def test_rows_of_long_windows_lie_by_month(tmp_path: Path) -> None:
    hourly = dataclasses.replace(task, window=Tumbling(3600.0))
    hours = [3600.0 * n for n in range(24 * 400)]  # from 1970 on
    store = DeltaStore(tmp_path)
    store.commit(SCORES, rows(0, hours, task=hourly), {0: 1})
    folders = sorted(path.name for path in (tmp_path / SCORES).glob("day=*"))
    assert folders[:2] == ["day=1970-01-01", "day=1970-02-01"]
    assert len(folders) == 14
    assert asked(tmp_path, "select count(*) from scores") == [(len(hours),)]


def test_windows_of_numbers_have_their_errors(tmp_path: Path) -> None:
    pump = dataclasses.replace(task, classes=(), targets=("flow", "heat"))
    DeltaStore(tmp_path / "pump").commit(SCORES, rows(0, [1, 2, 3], task=pump), {0: 1})
    outputs = asked(tmp_path / "pump", "select outputs from scores")
    [(mae, rmse)] = asked(tmp_path / "pump", "select mae, rmse from windows")
    away = np.abs(np.array([list(row) for (row,) in outputs]))  # the teacher says 0
    assert mae == pytest.approx(away.mean(), rel=1e-5)
    assert rmse == pytest.approx(np.sqrt((away**2).mean()), rel=1e-5)
    DeltaStore(tmp_path / "tiny").commit(SCORES, rows(0, [1, 2, 3]), {0: 1})
    names = [name for name, *_ in asked(tmp_path / "tiny", "describe windows")]
    assert "agreeing" in names
    assert "rmse" not in names


def test_a_partition_that_is_lost_while_a_commit_waits_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, other = DeltaStore(tmp_path), DeltaStore(tmp_path)

    def crowded(*_given: object, **_named: object) -> None:
        raise CommitFailedError("Failed to commit transaction: 15")

    def taken(_seconds: float) -> None:
        monkeypatch.undo()
        other.commit(SCORES, rows(0, [1.0]), {0: 1})

    monkeypatch.setattr(delta_store, "write_deltalake", crowded)
    monkeypatch.setattr(delta_store, "sleep", taken)
    with pytest.raises(PartitionLost, match="partition 0 belongs to another worker"):
        mine.commit(SCORES, rows(0, [1.0]), {0: 1})


def test_a_commit_that_others_always_come_before_ends_and_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crowded(*_given: object, **_named: object) -> None:
        raise CommitFailedError("Failed to commit transaction: 15")

    store = DeltaStore(tmp_path)
    monkeypatch.setattr(delta_store, "write_deltalake", crowded)
    monkeypatch.setattr(delta_store, "sleep", lambda _seconds: None)
    says = r"came first in 20 attempts to commit: run fewer workers"
    with pytest.raises(TidewheelError, match=says) as found:
        store.commit(SCORES, rows(0, [1.0]), {0: 1})
    assert not isinstance(found.value, PartitionLost)
