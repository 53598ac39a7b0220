"""No test is lost when they are shared out, and long modules stand at the beginnings."""

from hypothesis import given
from hypothesis import strategies as st

from tests.ordering import LONG_S, shared_out

modules = st.lists(
    st.tuples(st.text("abc", min_size=1), st.sampled_from([0.0, 99.0, 240.0, 400.0]),
              st.integers(1, 50)),
    unique_by=lambda m: m[0],
)  # fmt: skip


@given(modules, st.integers(1, 6))
def test_every_module_comes_once(found: list[tuple[str, float, int]], workers: int) -> None:
    assert sorted(shared_out(found, workers)) == sorted(name for name, *_ in found)


def test_the_long_ones_are_at_the_beginnings_of_the_workers_stretches() -> None:
    long = [(f"long-{i}", 400.0 - i, 2) for i in range(4)]
    short = [(f"short-{i}", 0.0, 2) for i in range(4)]
    order = shared_out([*short, *long], 2)
    assert order == [
        "long-0", "long-2", "short-0", "short-2", "long-1", "long-3", "short-1", "short-3",
    ]  # fmt: skip
    assert LONG_S <= 100
