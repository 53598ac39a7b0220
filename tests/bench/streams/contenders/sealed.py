"""How far a Delta table has come, from its log alone.

A commit is one file of JSON lines, `<version, 20 digits>.json`; `add` names a file and its number
of rows. Files that a compaction adds (`dataChange` false) hold rows that were there before.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq


@dataclass(frozen=True)
class Commit:
    """One version of the table: when it was made (ms since 1970), and the data files it added."""

    version: int
    time_ms: int
    rows: int
    files: tuple[str, ...]


class Log:
    """Reads each new file of the log once."""

    def __init__(self, table: Path) -> None:
        self.table = table
        self.rows = 0
        self.commits: list[Commit] = []

    def advance(self) -> int:
        """Take in what is new; the rows in all."""
        while (commit := self._read(len(self.commits))) is not None:
            self.commits.append(commit)
            self.rows += commit.rows
        return self.rows

    def _read(self, version: int) -> Commit | None:
        try:
            text = (self.table / "_delta_log" / f"{version:020d}.json").read_text()
        except FileNotFoundError:
            return None
        rows, files, time_ms = 0, [], 0
        for line in text.splitlines():
            action = json.loads(line)
            time_ms = action.get("commitInfo", {}).get("timestamp", time_ms)
            added = action.get("add")
            if added and added["dataChange"]:
                rows += json.loads(added["stats"])["numRecords"]
                files.append(added["path"])
        return Commit(version, time_ms, rows, tuple(files))

    def windows(self) -> Iterator[tuple[str, int, int]]:
        """(device, window start in us, time in ms) of each window in each commit."""
        for commit in self.commits:
            for name in commit.files:
                # The path is URL-encoded in the log; ours holds nothing that would be.
                rows = pq.read_table(self.table / name, columns=["device", "window"])
                pairs = zip(
                    rows.column("device").to_pylist(),
                    rows.column("window").cast("int64").to_pylist(),
                    strict=True,
                )
                for device, window in set(pairs):
                    yield device, window, commit.time_ms
