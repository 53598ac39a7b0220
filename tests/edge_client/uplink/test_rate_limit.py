"""The token bucket: a bound that no pattern of use passes."""

from hypothesis import given
from hypothesis import strategies as st

from edge_client.uplink.pacing import BURST_S, TokenBucket
from tests.rig.made_up.uplink_broker import Clock

steps = st.lists(st.tuples(st.floats(0, 100), st.integers(100, 5000)), max_size=30)


@given(rate=st.integers(1, 3000), steps=steps)
def test_no_interval_carries_more_than_its_time_a_burst_and_one_message(
    rate: int, steps: list[tuple[float, int]]
) -> None:
    clock = Clock()
    bucket = TokenBucket(rate, clock)
    left: list[tuple[float, int]] = []
    for pause_s, size in steps:
        clock.now += pause_s
        while bucket.allowance(10_000):
            bucket.take(size)
            left.append((clock.now, size))
    for i, (start, _) in enumerate(left):
        total = 0
        for at, size in left[i:]:
            assert total <= rate * (at - start + BURST_S) + 1  # before each, so one may come on top
            total += size


def test_an_idle_line_saves_up_one_burst_only() -> None:
    clock = Clock()
    bucket = TokenBucket(1000, clock)
    clock.now += 3600
    assert bucket.allowance(1_000_000) == 1000 * BURST_S
