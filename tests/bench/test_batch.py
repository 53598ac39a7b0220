"""The benchmark of batch jobs: its input, and how a command is measured."""

import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.bench.batch.stage import GROUP, WIDTH, Stage, rows_in, write_rows

WRITES = """
import sys, time, pyarrow as pa, pyarrow.parquet as pq
from pathlib import Path
Path(sys.argv[1]).mkdir()
pq.write_table(pa.table({"x": [1, 2, 3]}), sys.argv[1] + "/part-0.parquet")
held = bytearray(80_000_000)
time.sleep(0.3)
sys.exit(int(sys.argv[2]))
"""


def test_the_rows_are_segments_of_har_in_row_groups(tmp_path: Path) -> None:
    write_rows(tmp_path / "a.parquet", GROUP + 7)
    with pq.ParquetFile(tmp_path / "a.parquet") as file:
        assert [file.metadata.row_group(i).num_rows for i in range(2)] == [GROUP, 7]
        last = file.read_row_group(1)
    assert last.column("event").to_pylist()[-1] == f"e{GROUP + 6}"
    segments = np.stack(last.column("segment").to_numpy(zero_copy_only=False))
    assert segments.shape == (7, WIDTH)


def test_a_run_has_the_time_of_its_first_file_and_the_memory_of_its_processes(
    tmp_path: Path,
) -> None:
    stage = Stage(tmp_path, 3, 1, None, patience_s=0)
    output = stage.place("one")
    run = stage.run([sys.executable, "-c", WRITES, str(output), "0"], output)
    assert 0 < run.first_s < run.seconds
    assert run.peak_bytes > 80_000_000
    assert rows_in(output) == 3
    stage.clear(output)
    assert not output.exists()
    with pytest.raises(SystemExit, match="ended with 3"):
        stage.run([sys.executable, "-c", WRITES, str(output), "3"], output)
