"""Interval sets against Python's sets, and the sums of an account."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from streams.contract.accounting import DeviceAccount, IntervalSet

INTERVALS = st.lists(
    st.tuples(st.integers(0, 60), st.integers(0, 8)).map(lambda t: (t[0], t[0] + t[1])), max_size=30
)


@given(INTERVALS)
def test_an_interval_set_is_a_set(intervals: list[tuple[int, int]]) -> None:
    model: set[int] = set()
    found = IntervalSet()
    for first, last in intervals:
        fresh = set(range(first, last + 1)) - model
        assert found.add(first, last) == len(fresh)
        model |= fresh
    assert len(found) == len(model)
    assert all((n in found) == (n in model) for n in range(75))
    pieces = list(found)
    assert all(a[1] + 1 < b[0] for a, b in pairwise(pieces))


@given(INTERVALS, INTERVALS, INTERVALS)
def test_minus_has_what_the_others_lack(
    intervals: list[tuple[int, int]], ones: list[tuple[int, int]], others: list[tuple[int, int]]
) -> None:
    found, one, other = IntervalSet(intervals), IntervalSet(ones), IntervalSet(others)
    wanted = [(n, n) for n in range(75) if n in found and n not in one and n not in other]
    assert found.minus(one, other) == IntervalSet(wanted)


@given(INTERVALS, st.integers(0, 75), st.integers(0, 75))
def test_within_has_the_members_of_an_interval(
    intervals: list[tuple[int, int]], first: int, last: int
) -> None:
    found = IntervalSet(intervals)
    members = {n for low, high in found.within(first, last) for n in range(low, high + 1)}
    assert members == {n for n in range(first, last + 1) if n in found}


@given(INTERVALS, INTERVALS)
def test_remove_takes_out_what_is_there(
    intervals: list[tuple[int, int]], removed: list[tuple[int, int]]
) -> None:
    found = IntervalSet(intervals)
    gone = {n for first, last in removed for n in range(first, last + 1)}
    wanted = [(n, n) for first, last in intervals for n in range(first, last + 1) if n not in gone]
    for first, last in removed:
        found.remove(first, last)
    assert found == IntervalSet(wanted)


def test_an_account_is_balanced_when_nothing_is_unexplained() -> None:
    assert DeviceAccount(10, 6, {"spool-full": 3}, 1).balanced
    assert not DeviceAccount(10, 6, {"spool-full": 3}, 2).balanced


@given(
    st.lists(st.tuples(st.integers(0, 40), st.integers(0, 8))),
    st.integers(0, 40),
    st.integers(0, 20),
)
def test_missing_numbers_are_those_of_the_range_that_are_no_members(
    spans: list[tuple[int, int]], first: int, size: int
) -> None:
    members = IntervalSet([(begin, begin + more) for begin, more in spans])
    found = members.missing(first, first + size)
    assert found == list(IntervalSet([(first, first + size)]).minus(members))
