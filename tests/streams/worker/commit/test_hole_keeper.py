"""Holes of many partitions do not hold up a commit."""

import asyncio
from pathlib import Path

import pytest

from streams.contract.errors import BrokerUnavailable, ProcessFailed
from streams.contract.events.messages import Drop
from streams.worker.commit.hole_keeper import LOST, HoleKeeper, Survey, read_hole


async def begin(_partition: int) -> int:
    return 7


def nothing(_partition: int, _begin: int, _end: int) -> None:
    """There are only markers."""


def test_one_hole_is_surveyed_a_flush(tmp_path: Path) -> None:
    asked: list[int] = []

    def survey(partition: int) -> Survey:
        asked.append(partition)
        return 100 + partition, {}

    keeper = HoleKeeper(tmp_path, begin, survey, nothing)
    for partition in range(3):
        asyncio.run(keeper.assigned(partition, 5, 2))
    for flush in range(1, 5):
        asyncio.run(keeper.look())
        assert asked == list(range(min(flush, 3)))
    holes = [read_hole(tmp_path, partition) for partition in range(3)]
    assert [hole and (hole.begin, hole.end, hole.until) for hole in holes] == [
        (2, 5, 100), (2, 5, 101), (2, 5, 102),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("drops", "declared"),
    [
        ([], "0 events of 0 devices are"),
        ([Drop("d0", "e1", 3, 7, LOST), Drop("d0", "e2", 0, 0, LOST), Drop("d1", "e", 0, 3, LOST)],
         "10 events of 2 devices are"),
    ],
)  # fmt: skip
def test_a_hole_is_said_with_what_is_counted_and_what_cannot_be(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, drops: list[Drop], declared: str
) -> None:
    keeper = HoleKeeper(tmp_path, begin, lambda _partition: (663, {}), nothing)
    asyncio.run(keeper.assigned(1, 663, 652))
    asyncio.run(keeper.declared(1, drops))
    assert caplog.messages == [
        "events-1: retention has deleted the messages 652 to 662 (11) before a worker read them; "
        "what their producers numbered is declared once the rest is read",
        f"events-1: retention has deleted up to 11 messages (652 to 662): {declared} newly "
        "declared as lost-by-retention; events that their producers did not number (epoch, seq) "
        "cannot be counted",
    ]
    assert read_hole(tmp_path, 1) is None


def test_a_jump_is_a_hole_where_the_partition_begins_behind_it_alone(tmp_path: Path) -> None:
    keeper = HoleKeeper(tmp_path, begin, lambda _partition: (9, {}), nothing)
    keeper.jumped(0, 4, 8)  # 4 to 6 are deleted, 7 is a marker
    keeper.jumped(1, 7, 9)  # 7 and 8 are markers
    asyncio.run(keeper.look())
    first, second = read_hole(tmp_path, 0), read_hole(tmp_path, 1)
    assert first is not None
    assert (first.begin, first.end, second) == (4, 7, None)


def test_a_survey_that_finds_no_broker_is_made_again_later(tmp_path: Path) -> None:
    asked: list[int] = []

    def survey(partition: int) -> Survey:
        asked.append(partition)
        raise BrokerUnavailable("away")

    keeper = HoleKeeper(tmp_path, begin, survey, nothing)
    asyncio.run(keeper.assigned(0, 5, 2))
    for _ in range(3):
        asyncio.run(keeper.look())
    assert asked == [0]  # not at each flush
    hole = read_hole(tmp_path, 0)
    assert hole is not None
    assert hole.until is None


def test_an_assignment_whose_first_message_passes_over_others_ends_the_worker(
    tmp_path: Path,
) -> None:
    asked: list[tuple[int, int, int]] = []

    def first_in(partition: int, begin: int, end: int) -> int | None:
        asked.append((partition, begin, end))
        return begin if partition == 1 else None

    keeper = HoleKeeper(tmp_path, begin, lambda _partition: (9, {}), first_in)
    asyncio.run(keeper.assigned(0, 7, 0))
    asyncio.run(keeper.assigned(1, 7, 8))
    keeper.jumped(0, 7, 9)  # 7 and 8 are markers
    asyncio.run(keeper.look())
    keeper.jumped(0, 9, 11)  # later jumps are not looked into
    asyncio.run(keeper.look())
    keeper.jumped(1, 8, 11)
    with pytest.raises(ProcessFailed, match="events-1: message 11 came first, 8 was passed over"):
        asyncio.run(keeper.look())
    assert asked == [(0, 7, 9), (1, 8, 11)]
