"""Rows age out; what they were in the account and the position stays."""

from collections import Counter
from pathlib import Path

import pyarrow.dataset as ds
import pytest
from deltalake import DeltaTable

from streams.contract.accounting import IntervalSet
from streams.worker.store.delta_store import DeltaStore
from streams.worker.store.position import snapshot_name
from streams.worker.store.query import server_account
from streams.worker.store.retention import Aging, next_aging
from streams.worker.store.tables import (
    DROPS,
    LABELS,
    SCORES,
    label_rows,
    open_table,
    rows_in,
    table_at,
)
from streams.worker.windows.partition import NewLabels, StorePosition
from streams.worker.windows.tumbling import Message
from tests.rig.asked import asked
from tests.rig.processes.workers import SECOND, labels
from tests.streams.worker.store.test_delta_store import drops, rows

DAY_S, DAY_US = 86_400.0, 86_400_000_000


def filled(folder: Path, days: int = 20) -> DeltaStore:
    """Two events a day, and a label each; seqs 4 and 5 were declared dropped before they came."""
    store = DeltaStore(folder)
    store.commit(DROPS, drops(4, 5), {0: 1})
    for day in range(days):
        at_s = day * DAY_S
        told = NewLabels(Message(0, None), labels("d0", day, [(at_s, at_s)]))
        store.commit(LABELS, label_rows([(0, told)], {0: day + 1}, 0), {0: day + 1})
        store.commit(
            SCORES, rows(2 * day, [at_s, at_s + 9], commit=day + 1, drift=f"d{day}"), {0: day + 1}
        )
    return store


def days_left(folder: Path) -> list[int]:
    found = asked(folder, 'select distinct epoch_us("window") from scores')
    return sorted({us // DAY_US for (us,) in found})


def labels_left(folder: Path) -> int:
    return int(asked(folder, "select count(*) from labels")[0][0])


def test_old_rows_go_and_the_account_and_the_position_stay(tmp_path: Path) -> None:
    filled(tmp_path)
    account, before = server_account(tmp_path), DeltaStore(tmp_path).position(0)
    assert account == {("d0", "e1"): (40, 0)}
    DeltaStore(tmp_path).keep_up(0, 5.0)
    assert days_left(tmp_path) == list(range(14, 20))
    assert labels_left(tmp_path) == 6
    assert server_account(tmp_path) == account
    after = DeltaStore(tmp_path).position(0)
    assert (after.taken, after.labelled, after.watermark) == (
        before.taken, before.labelled, before.watermark,
    )  # fmt: skip
    (tmp_path / snapshot_name(0)).unlink()
    assert DeltaStore(tmp_path).position(0).taken == {("d0", "e1"): IntervalSet([(0, 39)])}


def test_it_goes_on_day_by_day(tmp_path: Path) -> None:
    store = filled(tmp_path, days=10)
    for day in range(10, 20):
        store.keep_up(0, 5.0)
        store.commit(SCORES, rows(10 + day, [day * DAY_S], commit=day + 1), {0: day + 1})
        assert server_account(tmp_path) == {("d0", "e1"): (11 + day, 0)}
    store.keep_up(0, 5.0)
    assert server_account(tmp_path) == {("d0", "e1"): (30, 0)}
    assert days_left(tmp_path) == list(range(14, 20))
    assert store.position(0).commit == 20


def test_a_crash_between_the_two_commits_counts_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(tmp_path)
    account, store = server_account(tmp_path), DeltaStore(tmp_path)

    def crash(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("deltalake.DeltaTable.delete", crash)
        with pytest.raises(KeyboardInterrupt):
            store.keep_up(0, 5.0)
    assert days_left(tmp_path) == list(range(20))
    assert server_account(tmp_path) == account
    DeltaStore(tmp_path).keep_up(0, 5.0)
    assert days_left(tmp_path) == list(range(14, 20))
    assert server_account(tmp_path) == account


def test_old_labels_go_while_others_come_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(tmp_path)
    delete = DeltaTable.delete

    def meanwhile(table: DeltaTable, old: str) -> object:
        if table.table_uri.rstrip("/").endswith(LABELS):
            told = NewLabels(Message(0, None), labels("d0", 20, [(0.0, 0.0)]))
            DeltaStore(tmp_path).commit(LABELS, label_rows([(0, told)], {0: 21}, 0), {0: 21})
        return delete(table, old)

    monkeypatch.setattr(DeltaTable, "delete", meanwhile)
    DeltaStore(tmp_path).keep_up(0, 5.0)
    assert labels_left(tmp_path) == 7
    assert days_left(tmp_path) == list(range(14, 20))


def test_a_position_reads_the_files_of_its_partition(tmp_path: Path) -> None:
    """Some hundred files of each partition are there before they are compacted."""
    store = DeltaStore(tmp_path)
    for number in range(1, 4):
        for partition in range(3):
            table = rows(number, [number * DAY_S], commit=number, partition=partition)
            store.commit(SCORES, table, {partition: number})
    table = open_table(tmp_path, SCORES)
    everything = rows_in(table, table_at(tmp_path, SCORES))
    own = rows_in(table, table_at(tmp_path, SCORES), 1)
    assert (len(everything.files), len(own.files)) == (9, 3)
    assert own.to_table() == everything.to_table(filter=ds.field("partition") == 1)


def test_a_late_row_of_an_old_window_is_counted_and_ages_with_the_next_day(tmp_path: Path) -> None:
    store = filled(tmp_path)
    store.keep_up(0, 5.0)
    store.commit(SCORES, rows(40, [3.0], commit=21), {0: 21})
    store.commit(SCORES, rows(41, [20 * DAY_S], commit=22), {0: 22})
    assert server_account(tmp_path) == {("d0", "e1"): (42, 0)}
    store.keep_up(0, 5.0)
    assert server_account(tmp_path) == {("d0", "e1"): (42, 0)}
    assert days_left(tmp_path) == list(range(15, 21))


@pytest.mark.parametrize(
    ("newest_days", "before_day"),
    [({}, 0), ({"a": 3}, 0), ({"a": 30}, 20), ({"a": 30, "b": 30, "ahead": 9999}, 20),
     ({"gone": 1, "a": 30, "b": 31}, 20)],
)  # fmt: skip
def test_what_is_old_goes_by_the_median_device(
    newest_days: dict[str, int], before_day: int
) -> None:
    newest = {name: day * DAY_US + 7 * SECOND for name, day in newest_days.items()}
    found = next_aging(StorePosition(Counter({SCORES: 9}), newest=newest), 3, 10.0)
    assert found.before_us == before_day * DAY_US
    assert found == Aging(3, before_day * DAY_US, 8 if newest else 0)


def test_without_a_limit_nothing_is_deleted(tmp_path: Path) -> None:
    filled(tmp_path)
    DeltaStore(tmp_path).keep_up(0)
    assert days_left(tmp_path) == list(range(20))
