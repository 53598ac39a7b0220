from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation.rounds.client_sampling import choose, to_ask, unfit
from streams.contract.documents import DeviceState
from streams.contract.task import Training

BASE = "2-bbbb"


def state(**changes: object) -> DeviceState:
    said = DeviceState(
        device="d", task="t", time_us=0, epoch="e", active=BASE, produced=0, delivered=0,
        pending=0, samples=100,
    )  # fmt: skip
    return said.model_copy(update=changes)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, None),
        ({"active": "1-aaaa"}, None),
        ({"phase": "training"}, None),
        ({"samples": 31}, "31 samples, 32 are needed"),
        ({"held_back": "battery at 12 %"}, "held back: battery at 12 %"),
        ({"refused": {BASE: "probe"}}, f"refused {BASE}: probe"),
        ({"phase": "draining"}, "draining"),
    ],
)
def test_who_need_not_be_asked(changes: dict[str, object], reason: str | None) -> None:
    assert unfit(state(**changes), BASE, Training()) == reason


@given(st.sets(st.integers(1, 60), max_size=40), st.integers(0, 30), st.integers(0, 5))
def test_so_many_are_drawn_the_same_for_the_same_seed(
    nodes: set[int], count: int, seed: int
) -> None:
    found = choose([*nodes], {}, BASE, count, seed)
    assert len(found) == (min(count, len(nodes)) if count else len(nodes))
    assert set(found) <= nodes
    assert sorted(found) == sorted(choose([*reversed([*nodes])], {}, BASE, count, seed))


def test_devices_that_serve_another_version_come_last() -> None:
    said = {node: state(active="1-aaaa", node=node) for node in (1, 2, 3)}
    said[4] = state(node=4)
    assert choose([1, 2, 3, 4, 5], said, BASE, 2, 0) == [4, 5]
    assert {4, 5} < set(choose([1, 2, 3, 4, 5], said, BASE, 3, 0))


def test_each_round_draws_others() -> None:
    drawn = {tuple(choose(range(20), {}, BASE, 5, seed)) for seed in range(10)}
    assert len(drawn) == 10


def test_more_are_asked_than_needed() -> None:
    training = replace(Training(), devices_per_round=10)
    assert to_ask(training) == 13
    assert to_ask(Training()) == 0
