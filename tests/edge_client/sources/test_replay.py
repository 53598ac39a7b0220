"""A replay resumes where it was, and its passes meet the same split."""

import threading
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from edge_client.samples.splits import split_of
from edge_client.sources.replay import Cut, Replay
from streams.contract.task import Reading
from tests.fakes.tiny_task import task


def replay(folder: Path, passes: int, resume: int | None = None) -> list[Cut]:
    source = Replay(
        task,
        "d1",
        folder,
        speed=0,
        passes=passes,
        resume_after_us=resume,
        stop=threading.Event(),
        skip=lambda _reason, _time: None,
    )
    return list(source)


def test_the_second_pass_meets_the_same_segments_and_split_at_later_times(tmp_path: Path) -> None:
    cuts = replay(tmp_path, passes=2)
    half = len(cuts) // 2
    first, second = cuts[:half], cuts[half:]
    assert [c.position_us for c in first] == [c.position_us for c in second]
    assert all(a.first_us < b.first_us for a, b in pairwise(cuts))
    splits = [[split_of(task, c.first_us, c.last_us) for c in half] for half in (first, second)]
    assert splits[0] == splits[1]
    assert set(splits[0]) == {0, 1, 2}


def test_a_restart_goes_on_behind_the_last_event(tmp_path: Path) -> None:
    whole = replay(tmp_path, passes=2)
    for at in (0, 10, len(whole) // 2, len(whole) // 2 + 7, len(whole) - 2):
        rest = replay(tmp_path, passes=2, resume=whole[at].last_us)
        assert [c.first_us for c in rest] == [c.first_us for c in whole[at + 1 :]]


def test_a_sensors_times_are_kept_and_it_is_not_repeated(tmp_path: Path) -> None:
    began = 1_790_000_000_000_000

    def live(_device: str) -> Iterator[Reading]:
        for i in range(45):
            yield Reading(began + i * 50_000, (0.0, 0.0))

    source = Replay(
        replace(task, readings=live),
        "d1",
        tmp_path,
        speed=1,
        passes=None,
        resume_after_us=None,
        stop=threading.Event(),
        skip=lambda _reason, _time: None,
    )
    cuts = list(source)
    assert [(c.first_us, c.last_us) for c in cuts] == [
        (began, began + 950_000),
        (began + 500_000, began + 1_450_000),
        (began + 1_000_000, began + 1_950_000),
    ]
