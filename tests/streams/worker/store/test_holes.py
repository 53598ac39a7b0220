"""What was in a hole follows from what is there."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.contract.accounting import IntervalSet
from streams.worker.commit.hole_keeper import (
    Hole,
    hole_name,
    lost,
    read_hole,
)
from streams.worker.windows.partition import StorePosition

SOURCES = (("d0", "e1"), ("d0", "e2"), ("d1", "e1"))
seqs = st.dictionaries(st.sampled_from(SOURCES), st.sets(st.integers(0, 40)))


def intervals(found: dict[tuple[str, str], set[int]]) -> dict[tuple[str, str], IntervalSet]:
    return {source: IntervalSet((n, n) for n in numbers) for source, numbers in found.items()}


@given(seqs, seqs, st.dictionaries(st.sampled_from(SOURCES), st.integers(0, 50)))
def test_everything_below_what_is_known_is_lost_or_there(
    taken: dict[tuple[str, str], set[int]],
    dropped: dict[tuple[str, str], set[int]],
    delivered: dict[tuple[str, str], int],
) -> None:
    position = StorePosition(taken=intervals(taken), dropped=intervals(dropped))
    cursors = [(*source, count) for source, count in delivered.items()]
    drops = lost(position, Hole(begin=1, end=9, until=9, cursors=cursors))
    for source in SOURCES:
        there = taken.get(source, set()) | dropped.get(source, set())
        bound = max(max(there, default=-1) + 1, delivered.get(source, 0))
        found = [n for d in drops if (d.device, d.epoch) == source
                 for n in range(d.first, d.last + 1)]  # fmt: skip
        assert sorted(found) == sorted(set(range(bound)) - there)


def test_two_holes_are_one_that_is_surveyed_anew() -> None:
    first = Hole(begin=5, end=9, until=20, cursors=[("d0", "e1", 7), ("d1", "e1", 3)])
    second = Hole(begin=15, end=30, cursors=[("d0", "e1", 12)])
    assert first.joined(second) == Hole(
        begin=5, end=30, cursors=[("d0", "e1", 12), ("d1", "e1", 3)]
    )


@pytest.mark.parametrize("data", [b"", b"{}", b"\xff", b'{"begin": -1, "end": 2}'])
def test_a_file_that_is_no_hole_is_ignored_and_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, data: bytes
) -> None:
    path = tmp_path / hole_name(0)
    path.parent.mkdir()
    path.write_bytes(data)
    assert read_hole(tmp_path, 0) is None
    assert f"{path} is ignored" in caplog.text
