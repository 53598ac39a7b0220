"""What a device remembers of its slots: any bytes are read or refused, and a model of the rules."""

import contextlib
import json
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from edge_client.inference.engine import ANSWERS, CRASH_S, REFUSED_KEPT, SlotState, too_late
from edge_client.inference.slots import Slots
from streams.contract.errors import MalformedRecord
from tests.rig.made_up.models import tiny

MODELS = [f"{n}-{n:08x}" for n in range(1, 6)]
models = st.sampled_from(MODELS)

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12) | models
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=8,
)
FIELDS = ["active", "previous", "confirmed", "crashes_us", "refused", "other"]
documents = st.dictionaries(
    st.sampled_from(FIELDS), values | st.lists(st.integers()) | st.dictionaries(models, st.text())
)


@given(st.binary(max_size=200) | documents)
@settings(max_examples=400, deadline=None)
def test_no_slots_file_crashes_an_agent(found: object) -> None:
    data = found if isinstance(found, bytes) else json.dumps(found).encode(errors="replace")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "slots.json").write_bytes(data)
        for _ in range(4):  # also what it makes of it the next times
            (folder / "serving").write_text(MODELS[0])
            (folder / "trying").write_text(MODELS[1])
            assert Slots(folder, tiny, []).open() is None
        with contextlib.suppress(MalformedRecord):
            state = SlotState.decode((folder / "slots.json").read_bytes())
            assert SlotState.decode(state.encode()) == state


@given(st.lists(st.tuples(st.sampled_from("icrb"), models), max_size=40))
def test_the_slots_are_never_the_same_and_nothing_refused_is_forgotten(
    steps: list[tuple[str, str]],
) -> None:
    state, refused = SlotState(), set[str]()
    for what, model in steps:
        if what == "i" and model not in refused and model != state.active:
            before, state = state, state.installed(model)
            assert state.active == model
            assert state.previous or not before.active
            if before.confirmed:
                assert state.previous == before.active
        elif what == "c":
            state = state.replace(confirmed=state.active is not None)
        elif what == "r" and model not in (state.active, state.previous):
            state, refused = state.refuse(model, "a test"), refused | {model}
        elif what == "b" and state.previous is not None and not state.confirmed:
            refused.add(str(state.active))
            state = state.gone_back("a test")
        assert SlotState.decode(state.encode()) == state
        assert state.active is None or state.active != state.previous
        assert set(state.refused) == refused


@given(st.lists(st.integers(-(2**62), 2**62), max_size=12))
def test_only_crashes_near_each_other_count_whatever_the_clock_does(times: list[int]) -> None:
    state = SlotState(active=MODELS[0], previous=MODELS[1])
    for now in times:
        state = state.crashed(now)
        assert all(abs(now - at) <= CRASH_S * 1e6 for at in state.crashes_us)
        assert state.failed == (len(state.crashes_us) >= 3)
    assert SlotState.decode(state.encode()) == state


def test_the_latest_refusals_are_kept() -> None:
    state = SlotState()
    for n in range(1, 100):
        state = state.refuse(f"{n}-00000000", "x" * 1000)
    state = state.refuse("90-00000000", "again")
    assert len(state.refused) == REFUSED_KEPT
    assert list(state.refused.items())[-1] == ("90-00000000", "again")
    assert max(len(why) for why in state.refused.values()) == 300


def test_two_late_answers_of_two_hundred_are_chance_and_three_are_not() -> None:
    assert too_late([9.0] * ANSWERS + [0.001] * (ANSWERS - 2) + [9.0] * 2, 0.002) is None
    late = too_late([0.001] * (ANSWERS - 3) + [9.0] * 3, 0.002)
    assert late is not None
    assert late.startswith("late: p99")
