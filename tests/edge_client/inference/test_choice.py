"""When a device keeps the version before: the test, its error rate and its power."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_client.inference.choice import (
    LEAST,
    Comparison,
    adapter_answers,
    chance,
    compare,
    is_time_to_look,
    losses,
    surprises,
)
from streams.contract.task import Segment, Task
from tests.rig.made_up.tiny_task import task

APART = replace(task, segment=Segment(samples=task.segment.samples, hop=task.segment.samples))


def votes(old: int, new: int, same: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Losses of two versions: `old` rows on which the old one alone is right, and so on."""
    losses_of_old = [0.0] * old + [1.0] * new + [0.0] * same
    losses_of_new = [1.0] * old + [0.0] * new + [0.0] * same
    return np.array(losses_of_old), np.array(losses_of_new)


def compared(of: Task, old: np.ndarray, offered: np.ndarray) -> Comparison:
    """Of segments one after the other."""
    hop_us = of.segment.hop * 1_000_000 // (of.rate_hz or 1)
    return compare(of, old, offered, np.arange(len(old)) * hop_us)


@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 60))
def test_more_votes_for_the_old_version_never_speak_against_it(
    old: int, new: int, same: int
) -> None:
    found = compared(APART, *votes(old, new, same))
    more = compared(APART, *votes(old + 1, new, same))
    assert more.chance <= found.chance
    for keeping in (False, True):
        assert more.keeps(keeping=keeping) >= (found.keeps(keeping=keeping) and more.rows >= LEAST)
    assert found.keeps(keeping=True) >= found.keeps(keeping=False)
    if old <= new:
        assert not found.keeps(keeping=True)


def test_few_rows_and_small_differences_keep_nothing() -> None:
    assert not compared(APART, *votes(LEAST - 1, 0)).keeps(keeping=True)
    assert compared(APART, *votes(LEAST, 0)).keeps(keeping=False)
    assert not compared(APART, *votes(8, 0, 600)).keeps(keeping=False)  # a hundredth
    assert compared(APART, np.zeros(0), np.zeros(0)).keeps(keeping=True) is False


def test_overlapping_segments_are_not_as_many_votes() -> None:
    half = replace(task, segment=Segment(samples=8, hop=4))
    assert compared(half, *votes(8, 0)).chance == 1 / 16
    assert compared(half, *votes(8, 1)).chance == pytest.approx(chance(4, 1))
    apart = np.arange(8) * 10_000_000  # each tenth of them is labelled: none overlaps
    assert compare(half, *votes(8, 0), apart).chance == 1 / 256
    assert compare(half, *votes(8, 0), np.zeros(8)).chance == 0.5  # the same one, eight times


def test_an_adapter_needs_less_to_show_while_the_sensor_has_drifted() -> None:
    better, hardly, worse = (
        compared(APART, *votes(*each)) for each in ((3, 0, 4), (2, 1, 4), (0, 2, 8))
    )
    assert adapter_answers(better, drifting=False) is True
    assert adapter_answers(hardly, drifting=False) is None
    assert adapter_answers(hardly, drifting=True) is True
    for drifting in (False, True):
        assert adapter_answers(worse, drifting=drifting) is False
        assert adapter_answers(compared(APART, *votes(4, 0)), drifting=drifting) is None
        assert adapter_answers(compared(APART, *votes(1, 0, 60)), drifting=drifting) is None


def test_few_labels_show_by_their_surprise_that_an_adapter_is_better() -> None:
    times, old, offered = np.arange(30) * 10_000_000, *votes(2, 1, 27)
    less = np.random.default_rng(1).normal(0.5, 1.0, 30)
    for found, answers in (
        (compare(APART, old, offered, times), None),
        (compare(APART, old, offered, times, less), True),
        (compare(APART, old, offered, times, less - 0.5), None),
        (compare(APART, *votes(0, 0, 30), times, less), None),  # surer, and right as often
        (compare(APART, offered, old, times, less), False),
    ):
        assert adapter_answers(found, drifting=False) is answers
    outputs = np.array([[2.0, 0.0, 0.0], [0.0, 800.0, 0.0]], np.float32)
    found = surprises(task, outputs, np.array([[0.0], [0.0]], np.float32))
    assert found == pytest.approx([np.log(1 + 2 * np.exp(-2)), 800.0])


def test_losses_are_by_the_tasks_metric() -> None:
    outputs = np.array([[2.0, 0.0, 0.0], [0.0, 2.0, 0.0]], np.float32)
    labels = np.array([[0.0], [0.0]], np.float32)
    assert losses(task, outputs, labels).tolist() == [0.0, 1.0]
    numbers = replace(task, classes=(), targets=("a",))
    assert losses(numbers, np.array([[1.5]], np.float32), np.array([[1.0]])).tolist() == [0.5]
    ranked = replace(task, classes=("no", "yes"), metric="auc")
    found = losses(ranked, np.array([[0.0, 3.0], [3.0, 0.0]], np.float32), np.ones((2, 1)))
    assert found[0] < 0.01 < 0.9 < found[1]


def ever_keeps(better: float, worse: float, labels: int, dice: np.random.Generator) -> bool:
    """Whether a device keeps the old version at one of its looks, until it has so many labels;
    `better` and `worse` are the shares of rows on which one of the versions alone is right."""
    drawn = dice.random(labels)
    old, new = (drawn >= worse) | (drawn < 0), drawn < 1 - better  # of right answers
    then = 0
    for told in range(1, labels + 1):
        if is_time_to_look(told, then):
            then = told
            seen = slice(max(0, told - 400), told)
            found = compared(APART, 1.0 - old[seen], 1.0 - new[seen])
            if found.keeps(keeping=False):
                return True
    return False


def test_of_equal_versions_the_old_one_is_seldom_kept_and_a_worse_one_mostly_noticed() -> None:
    dice = np.random.default_rng(4)
    equal = np.mean([ever_keeps(0.1, 0.1, 1000, dice) for _ in range(600)])
    worse = np.mean([ever_keeps(0.3, 0.0, 60, dice) for _ in range(200)])
    better = np.mean([ever_keeps(0.05, 0.25, 1000, dice) for _ in range(200)])
    assert 0.01 < equal < 0.15
    assert worse > 0.95
    assert better < 0.02
