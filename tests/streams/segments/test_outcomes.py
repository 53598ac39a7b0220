"""`check` and `up` name what is wrong with a task's `outcomes` before anything runs."""

import re
import threading
from collections.abc import Iterator

import pytest

from compose.preflight import check_data, check_quickly
from streams.contract.errors import TaskError
from streams.contract.task import Answered, Outcome, load_task
from streams.segments.findings import outcome_finding
from tests.streams.contract.test_task import made


def wrong_field(_device: str, answered: Iterator[Answered]) -> Iterator[Outcome]:
    for each in answered:
        yield Outcome(each.first_us, each.first, 0)  # type: ignore[attr-defined]


LINE = wrong_field.__code__.co_firstlineno + 2


def no_class(_device: str, answered: Iterator[Answered]) -> Iterator[Outcome]:
    for each in answered:
        yield Outcome(each.first_us, each.last_us, 7)


def right(_device: str, answered: Iterator[Answered]) -> Iterator[Outcome]:
    for each in answered:
        yield Outcome(each.first_us, each.last_us, 1)


def nothing(_device: str, answered: Iterator[Answered]) -> Iterator[Outcome]:
    yield from (Outcome(0, 0, 1) for each in answered if each.first_us < 0)


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (wrong_field, rf"error: outcomes\(\) fails: AttributeError: .*test_outcomes.py:{LINE}\)"),
        (no_class, r"error: outcomes\(\) yields label 7, which is not one of the task's labels"),
        (
            nothing,
            r"warning: outcomes\(\) yields nothing for the answers to the first 1000 readings",
        ),
        (right, None),
        (None, None),
    ],
)
def test_what_is_wrong_with_outcomes_is_named(function: object, says: str | None) -> None:
    task = made(outcomes=function)
    found = outcome_finding(task, task.device_names("fleet")[0])
    if says is None:
        assert found is None
        return
    assert found is not None
    assert re.match(says, f"{found.level}: {found.text}")
    assert found in check_data(task).findings
    if found.level == "error":
        with pytest.raises(TaskError, match=re.escape(found.text.partition(":")[0])):
            check_quickly(task, lambda _text: None)


def test_one_that_waits_for_the_world_is_not_waited_for() -> None:
    ever = threading.Event()

    def waits(_device: str, _answered: Iterator[Answered]) -> Iterator[Outcome]:
        ever.wait(60)
        yield Outcome(0, 0, 7)

    assert outcome_finding(made(outcomes=waits), "d0", within_s=0.1) is None
    ever.set()


def test_the_built_in_ones_are_right() -> None:
    task = load_task("streams.tasks.pedestrians:task")
    assert outcome_finding(task, task.device_names("fleet")[0]) is None
