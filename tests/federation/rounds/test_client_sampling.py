import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation.rounds.participants import choose, to_invite, unfit
from streams.contract.documents import DeviceState
from tests.rig.made_up.documents import device_state

BASE = "2-bbbb"


def state(**changes: object) -> DeviceState:
    return device_state(**{"active": BASE, "samples": 100, **changes})


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
    assert unfit(state(**changes), BASE) == reason


def test_where_a_part_is_sent_a_device_without_the_base_comes_last_of_all() -> None:
    other = state(device="a", active="1-aaaa")
    assert unfit(other, BASE, part=True) == f"has 1-aaaa, and a part of {BASE} is sent"
    before = state(device="b", active="3-cccc", previous=BASE)
    assert unfit(before, BASE, part=True) is None
    assert to_invite([other, before], BASE, 0, 1, 0, part=True) == ["b"]
    assert to_invite([other, before], BASE, 0, 2, 0, part=True) == ["a", "b"]  # it may come yet


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


def test_a_round_invites_those_on_free_lines_that_have_waited_longest() -> None:
    hour_us = 3_600_000_000
    fleet = [
        state(device="paid", metered=True),
        state(device="new"),
        state(device="lately", last_run_us=9 * hour_us),
        state(device="earlier", last_run_us=hour_us),
        state(device="here", last_run_us=9 * hour_us + 1, run="7"),
        state(device="going", phase="draining"),
    ]
    order = [to_invite(fleet, BASE, count, 1, seed=count) for count in range(1, 6)]
    assert order[0] in (["here"], ["new"])
    assert order[1:3] == [["here", "new"], ["earlier", "here", "new"]]
    assert order[3] == ["earlier", "here", "lately", "new"]
    assert order[4] == ["earlier", "here", "lately", "new", "paid"]
    assert to_invite(fleet, BASE, 0, 1, seed=0) == order[4]
    drawn = {tuple(to_invite([state(device=f"d{i}") for i in range(20)], BASE, 3, 1, s))
             for s in range(10)}  # fmt: skip
    assert len(drawn) == 10
