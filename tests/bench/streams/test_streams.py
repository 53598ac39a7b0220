"""The benchmark of the scoring worker: what contenders are handed, and what their runs say."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from streams.contract.events.records import encode_events
from streams.tasks import har
from tests.bench.meter import Measure, Meter
from tests.bench.report import Figure
from tests.bench.streams.contenders.outlet import Outlet
from tests.bench.streams.contenders.pieces import Piece, pieces_of
from tests.bench.streams.feed.generator import Source
from tests.bench.streams.feed.plan import ORIGIN_US, Plan
from tests.bench.streams.feed.tasks import TRIVIAL
from tests.bench.streams.feed.teacher import write_teacher
from tests.bench.streams.subject import COLUMNS, Run, Runs


def message(first: int = 0, rows: int = 64) -> tuple[bytes, bytes, list[tuple[str, bytes]]]:
    """A message whose events are 1.28 s apart."""
    times = ORIGIN_US + (first + np.arange(rows)) * 1_280_000
    return encode_events(Source(har.task, rows).events("device-00000", first, times))


def test_a_message_is_cut_where_a_window_ends() -> None:
    pieces = pieces_of(har.task, *message())
    assert sum(len(piece.rows) for piece in pieces) == 64
    assert len({piece.window for piece in pieces}) == len(pieces) == 3
    assert all(piece.window <= piece.newest < piece.window + 30_000_000 for piece in pieces)


def test_a_piece_is_the_same_from_its_bytes() -> None:
    for piece in pieces_of(har.task, *message()):
        assert Piece.decode(piece.encode()) == piece


def test_events_that_come_twice_are_dropped() -> None:
    first = pieces_of(har.task, *message())[0]
    count = len(first.rows)
    assert first.next_seq == count
    assert first.since(0) is first
    assert first.since(count) is None
    rest = first.since(count - 2)
    assert rest is not None
    assert rest.rows.column("seq").to_pylist() == [count - 2, count - 1]


def test_closed_windows_are_scored_and_stored(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = Plan(TRIVIAL, "nowhere", str(tmp_path), 1, 1, 64, 1_280_000)
    task, meter = plan.load_task(), Meter()
    write_teacher(task, tmp_path)
    outlet = Outlet(plan, tmp_path / "run", meter, whole=False)
    meter.begin()
    pieces = pieces_of(task, *message())
    outlet.put([[piece] for piece in pieces])
    outlet.tell()
    assert Measure.read(capsys.readouterr().out).rows == outlet.rows == 64
    (file,) = (tmp_path / "run" / "rows").iterdir()
    rows = pq.read_table(file)
    assert rows.column("seq").to_pylist() == list(range(64))
    assert {len(one) for one in rows.column("teacher").to_pylist()} == {task.outputs}


# --- runs ----------------------------------------------------------------------------------------


def runs(*speeds: float) -> Runs:
    return Runs([Run(Measure(100, 100 / speed, 1.0, 1_000_000), 0.05) for speed in speeds])


def test_contenders_are_compared_turn_by_turn() -> None:
    found = runs(10.0, 30.0, 20.0).to(runs(5.0, 10.0, 10.0))
    assert found is not None
    assert (found.median, found.low, found.high) == pytest.approx((2.0, 2.0, 3.0))


def test_a_row_says_how_often_it_was_measured_and_the_highest_load() -> None:
    name, speed, ratio, *rest = runs(10.0, 30.0, 20.0).cells("worker", 1)
    assert (name, ratio) == ("worker", 1)
    assert isinstance(speed, Figure)
    assert speed.median == pytest.approx(20.0)
    assert dict(zip(COLUMNS, rest, strict=True))["runs"] == 3
    assert rest[-1] == "5%"


def test_two_processes_that_begin_at_once_take_as_long_as_the_last() -> None:
    both = Measure.together([Measure(100, 2.0, 3.0, 10), Measure(50, 4.0, 1.0, 20)])
    assert both == Measure(150, 4.0, 4.0, 30)
    assert Runs([Run(both, 0.0)]).cores.median == pytest.approx(1.0)


def test_a_contender_that_fails_has_its_reason_in_place_of_figures() -> None:
    failed = Runs([], "gone")
    assert failed.to(runs(1.0)) is None
    assert failed.cells("other", None)[:2] == ["other", "failed: gone"]
    assert len(failed.cells("other", None)) == len(runs(1.0).cells("worker", 1))
