"""The parts of the benchmark of growth that compute: fits, the needs of a fleet, and its page."""

import dataclasses
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.contract.task import load_task
from streams.worker.store.delta_store import DeltaStore
from tests.bench import pages
from tests.bench.report import Figure, Results, Table
from tests.bench.scale import needs as pages_of_needs
from tests.bench.scale.commits import committed, rows_of
from tests.bench.scale.drains import reports
from tests.bench.scale.fit import fit
from tests.bench.scale.fleet import (
    Fleet,
    Per,
    Slopes,
    breaks,
    needs,
    workers_by_buffer,
    workers_by_cpu,
    workers_needed,
    workers_of_one_table,
)
from tests.bench.scale.needs import amount, cell, column, slopes_of, written
from tests.bench.streams.feed.plan import Plan
from tests.bench.streams.feed.tasks import SCALING

costs = st.floats(0.0, 1e3)


# --- fits -----------------------------------------------------------------------------------------


@given(costs, costs, st.floats(0.1, 1e3))
def test_a_fit_finds_the_line_that_the_points_are_on(a: float, b: float, base: float) -> None:
    xs = [(1, 1), (1000, 1), (1, 1000), (1000, 5000), (60_000, 10)]
    made = fit([((x, y), [base + a * x + b * y]) for x, y in xs])
    for x, y in xs:
        assert made(x, y) == pytest.approx(base + a * x + b * y, rel=1e-6)
    assert made.holds


def test_a_fit_through_the_origin_has_no_intercept() -> None:
    made = fit([((x,), [3.0 * x]) for x in (1, 10, 100)], origin=True)
    assert made.intercept.median == 0
    assert made.slopes[0].median == pytest.approx(3)


def test_a_cost_that_would_be_negative_is_none() -> None:
    made = fit([((1, 9), [10.0]), ((2, 5), [20.0]), ((4, 1), [40.0]), ((8, 7), [79.0])])
    assert all(slope.median >= 0 for slope in made.slopes)
    assert made.slopes[1].median == 0


def test_each_turn_is_fitted_by_itself_and_a_missing_one_is_the_last() -> None:
    made = fit([((1,), [2.0, 4.0]), ((2,), [4.0, 8.0]), ((3,), [9.0])], origin=True)
    assert (made.slopes[0].low, made.slopes[0].runs) == (pytest.approx(2.2, abs=0.2), 2)
    assert made.slopes[0].high > 3


def test_a_fit_that_does_not_hold_names_the_point() -> None:
    made = fit([((1,), [10.0]), ((10,), [100.0]), ((100_000,), [10.0])])
    assert not made.holds
    assert made.verdict.startswith("**off by ")
    assert fit([((1,), [10.0]), ((2,), [20.5]), ((3,), [30.0])]).verdict.startswith("within ")


# --- a fleet --------------------------------------------------------------------------------------

SLOPES = Slopes(
    worker=Per(100e-6, 10e-6, 300e-6), broker=Per(20e-6, 1e-6, 10e-6), worker_cores=1.0,
    topics=Per(200, 300, 2000), store=Per(0, 50, 100), commits_per_s=60, flush_s=0.3,
    device_bytes=10e3, worker_bytes=500e6, message_bytes=2500, row_bytes=100, buffer_bytes=512e6,
    state_s=50e-6, report_s=60e-6, controller_bytes=120e6, controller_device_bytes=5e3,
    start_device_s=100e-6,
)  # fmt: skip


def test_messages_rows_and_windows_follow_from_devices() -> None:
    fleet = Fleet(devices=3000, events_per_message=50, window_s=30)
    assert (fleet.rows_per_s, fleet.messages_per_s, fleet.windows_per_s) == (3000, 60, 100)
    sampled = Fleet(devices=3000, events_sent=0.01)  # an event of a device each 100 s
    assert sampled.windows_per_s == sampled.rows_per_s == 30  # a window an event


def test_messages_wait_for_their_windows() -> None:
    assert Fleet(devices=10, window_s=30, lateness_s=5).open_messages == 350
    assert Fleet(devices=10, events_per_message=50).open_messages == 10  # at least one a device
    assert Fleet(devices=100, events_sent=0.001, window_s=30).open_messages == pytest.approx(3)


def test_workers_are_those_that_the_dearer_of_cpu_and_buffer_asks_for() -> None:
    fleet = Fleet(devices=100_000, lateness_s=5)
    # 100,000 x (100 + 10) us + 3,333 x 300 us = 12 cores, planned at half
    assert workers_by_cpu(SLOPES, fleet) == 24
    # 3.5 M messages x 2,500 bytes = 8.75 GB, in halves of 512 MB
    assert workers_by_buffer(SLOPES, fleet) == 35
    assert workers_needed(SLOPES, fleet) == 35
    together = Fleet(devices=100_000, events_per_message=11)  # one message a device waits
    assert workers_by_buffer(SLOPES, together) == math.ceil(273_000 * 3500 / 256e6)
    assert workers_of_one_table(SLOPES) == 18
    found = {one.what: one.value for one in needs(SLOPES, fleet)}
    assert found["workers"] == found["partitions of `events`"] == 35
    assert found["stores (tables of their own)"] == 2
    assert found["commits"] == pytest.approx(35 / 0.3)
    assert found["controller's CPU"] == pytest.approx(10_000 * 50e-6 + 100_000 / 30 * 60e-6)
    assert found["store"] == pytest.approx((100_000 * 50 + 100_000 / 30 * 100) * 86_400)


@given(st.integers(1, 10**7), st.integers(1, 100))
def test_more_devices_never_need_less(devices: int, per_message: int) -> None:
    fleet = Fleet(devices=devices, events_per_message=per_message)
    double = dataclasses.replace(fleet, devices=2 * devices)
    for one, other in zip(needs(SLOPES, fleet), needs(SLOPES, double), strict=True):
        assert other.value >= one.value, one.what


def test_what_gives_way_first_is_the_first_line() -> None:
    found = breaks(SLOPES, Fleet(lateness_s=5))
    assert [devices for _, devices, _ in found] == sorted(devices for _, devices, _ in found)
    assert found[0][0].startswith("one worker's")


# --- pages ----------------------------------------------------------------------------------------


def test_cells_are_found_by_title_row_and_column() -> None:
    table = Table("T", "", ["", "a", "b"], [["x", Figure(2.0, 1.0, 3.0, 2), None], ["y", "no", 5]])
    results = Results({}, tables=[table])
    assert (cell(results, "T", "x", "a"), cell(results, "T", "y", "b")) == (2.0, 5.0)
    assert column(results, "T", "a") == [2.0]
    for title, row, name in (("U", "x", "a"), ("T", "z", "a"), ("T", "x", "b")):
        with pytest.raises(KeyError):
            cell(results, title, row, name)


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [(33_333.3, "a second", "33,000 a second"), (0.0123, "cores", "0.012 cores"), (24, "", "24"),
     (5.26e12, "bytes a day", "5.3 TB a day"), (999, "bytes", "1000 B"), (0, "CPU s", "0 CPU s")],
)  # fmt: skip
def test_amounts_have_two_digits(value: float, unit: str, text: str) -> None:
    assert amount(value, unit) == text


@pytest.mark.skipif("scale" not in pages.written(), reason="no whole run has written its page yet")
def test_the_architecture_page_quotes_the_run() -> None:
    results, text = pages.read("scale"), pages_of_needs.PAGE.read_text()
    again = "run `python -m tests.bench.scale.needs`"
    assert text == written(text, results), again
    made = Results({}, tables=[t for t in results.tables if t.title not in pages_of_needs.TITLES])
    pages_of_needs.million(made)  # the same slopes give the same tables
    for title in pages_of_needs.TITLES:
        (before,) = (table for table in results.tables if table.title == title)
        (after,) = (table for table in made.tables if table.title == title)
        assert before == after, again
    assert slopes_of(results).worker.row > 0


# --- what is measured with ------------------------------------------------------------------------


def test_rows_of_a_commit_are_a_window_of_each_partition(tmp_path: Path) -> None:
    task, store = load_task(SCALING), DeltaStore(tmp_path)
    for number in (1, 2):
        committed(store, rows_of(task, range(4), 80, number), range(4), number)
    assert reports(tmp_path / "scores") == (4, 0)  # the same windows again
    assert store.position(3).commit == 2


def test_messages_of_one_row_close_their_windows() -> None:
    plan = Plan(SCALING, "", "", devices=2, rounds=4, per_message=1, hop_us=1_000_000, phase=0.0)
    times = [int(plan.times_us(0, round_)[0]) for round_ in range(4)]
    window_us = plan.load_task().window_us
    assert len({time // window_us for time in times[:3]}) == 1
    assert times[3] // window_us > times[0] // window_us
    assert plan.closed_rows == 6
