"""What a job takes for the event time of readings, and what the end of a job says of it."""

import time
from pathlib import Path
from typing import Any

import pytest

from streams.batch.jobs.manifest import summary_of
from tests.streams.batch.support import submitted, write_csv, write_lines
from tests.streams.batch.test_readings import (
    CUT,
    DAY_US,
    STEP_US,
    SUFFIX,
    moment,
    recording,
    table_of,
    write_readings,
)


@pytest.mark.parametrize("write", [write_csv, write_lines, write_readings])
def test_a_time_without_a_zone_is_utc(
    tmp_path: Path, write: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[Any] = table_of({"d0": recording("d0", 300)[:60]})
    for row in rows:
        naive = moment(row["time"]).replace(tzinfo=None)
        row["time"] = naive if write is write_readings else naive.isoformat()
    monkeypatch.setenv("TZ", "Europe/Madrid")
    time.tzset()
    try:
        path = write(tmp_path / f"in.{SUFFIX[write]}", rows)
        job = submitted(tmp_path, path, **{**CUT, "id": "device"})
        job.run()
    finally:
        monkeypatch.undo()
        time.tzset()
    assert job.rows()[0]["time"] == moment(DAY_US + 19 * STEP_US)


def test_one_is_singular(tmp_path: Path) -> None:
    rows: list[Any] = table_of({"d0": recording("d0", 300)[:20]})
    path = write_readings(tmp_path / "in.parquet", rows)
    found = submitted(tmp_path, path, **{**CUT, "id": "device"}).run()
    said = "; ".join(summary_of(found))
    assert "1 answer, 0 errors; 20 readings, breaking a segment: 0" in said


@pytest.mark.parametrize(
    ("times", "said"), [(lambda us: us // 1000, True), (int, False)], ids=["ms", "us"]
)
def test_times_before_1980_alone_are_said(tmp_path: Path, times: Any, said: bool) -> None:
    """As those of milliseconds are."""
    rows: list[Any] = table_of({"d0": recording("d0", 300)[:60]})
    rows = [{**row, "time": times(row["time"])} for row in rows]
    path = write_readings(tmp_path / "in.parquet", rows)
    found = submitted(tmp_path, path, **{**CUT, "id": "device"}).run()
    assert found.processed > 0
    assert any("before 1980" in line for line in summary_of(found)) is said
