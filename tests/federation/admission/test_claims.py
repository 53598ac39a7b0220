import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation.admission.claims import CLAIM_FACTOR, most

claims = st.integers(1, 1_000_000)


@given(claims, st.integers(1, 50))
def test_equal_claims_count_as_they_are(claim: int, devices: int) -> None:
    assert most([claim] * devices) >= claim


@given(claims, claims)
def test_one_device_or_two_are_not_limited(one: int, other: int) -> None:
    assert most([one]) >= one
    assert most([one, other]) >= max(one, other)


@given(st.lists(claims, min_size=1, max_size=30))
def test_half_of_the_devices_count_as_they_claim_and_a_second_time_changes_nothing(
    said: list[int],
) -> None:
    limit = most(said)
    counted = [min(claim, limit) for claim in said]
    assert sum(claim == count for claim, count in zip(said, counted, strict=True)) >= len(said) / 2
    assert most(counted) == limit


def test_devices_of_unequal_size_keep_their_order_up_to_twice_the_median() -> None:
    assert [min(n, most([40, 100, 150, 200, 2048])) for n in (40, 100, 150, 200, 2048)] == [
        40, 100, 150, 200, 300,
    ]  # fmt: skip


@pytest.mark.parametrize(("liars", "devices"), [(1, 4), (2, 7), (3, 10), (33, 100)])
def test_less_than_a_third_have_less_than_half_of_the_weight(liars: int, devices: int) -> None:
    honest = devices - liars
    limit = most([270] * honest + [1_000_000] * liars)
    assert limit == CLAIM_FACTOR * 270
    assert liars * limit < honest * 270
