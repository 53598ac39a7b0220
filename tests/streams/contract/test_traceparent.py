"""The header `traceparent`: what is written is read, everything else is ignored, and ids follow
from names alone."""

import hashlib
import re

from hypothesis import given
from hypothesis import strategies as st

from streams.contract.events.traceparent import (
    TRACEPARENT,
    TraceParent,
    event_trace,
    is_sampled,
    read_traceparent,
    run_trace,
    span_id,
    traceparent_of,
)

hexes = st.text("0123456789abcdef", min_size=32, max_size=32).filter(lambda x: int(x[:16], 16))
traces = hexes.map(lambda digits: hashlib.sha256(digits.encode()).hexdigest()[:32])
parents = st.builds(
    lambda trace, digits, sampled: TraceParent(trace, digits[:16], sampled),
    traces, hexes, st.booleans(),
)  # fmt: skip
FORM = re.compile(rb"00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


@given(parents)
def test_what_is_written_is_read(parent: TraceParent) -> None:
    name, value = parent.header
    assert name == "traceparent"
    assert FORM.fullmatch(value)
    assert value[-2:] in (b"00", b"01")
    assert read_traceparent(value) == parent
    assert traceparent_of([("schema", b"events/1"), parent.header]) == parent


@given(st.binary(max_size=80))
def test_bytes_from_anyone_are_no_header_and_no_error(value: bytes) -> None:
    assert (read_traceparent(value) is None) == (FORM.fullmatch(value) is None)


@given(parents, st.integers(0, 54), st.binary(min_size=0, max_size=2))
def test_a_header_that_is_changed_anywhere_is_of_the_form_or_ignored(
    parent: TraceParent, at: int, other: bytes
) -> None:
    value = parent.text.encode()
    changed = value[:at] + other + value[at + 1 :]
    found = read_traceparent(changed)
    assert (found is not None) <= (FORM.fullmatch(changed) is not None)
    if found is not None:
        assert found.text[:53].encode() == changed[:53]


def test_what_the_recommendation_refuses_is_ignored() -> None:
    trace, span = "ab" * 16, "cd" * 8
    good = f"00-{trace}-{span}-01"
    assert read_traceparent(good.encode()) == TraceParent(trace, span)
    for wrong in (
        "", good.upper(), f"01-{trace}-{span}-01", f"ff-{trace}-{span}-01", f"{good}-more",
        f"00-{'0' * 32}-{span}-01", f"00-{trace}-{'0' * 16}-01", f" {good}", f"{good}\n",
    ):  # fmt: skip
        assert read_traceparent(wrong.encode()) is None, wrong
    assert read_traceparent(None) is None
    for flags, sampled in (("00", False), ("02", False), ("03", True), ("ff", True)):
        assert read_traceparent(f"00-{trace}-{span}-{flags}".encode()) == (trace, span, sampled)
    twice = [TraceParent(trace, span).header] * 2
    assert traceparent_of(twice) is None
    assert traceparent_of([(TRACEPARENT, None)]) is None
    assert traceparent_of([]) is None


def test_anybody_can_compute_an_id() -> None:
    """As docs/how-to/monitoring.md says it: printf ... | sha256sum | cut -c-32"""
    text = b"pumps/events/pump-3/1767225590000-0a1b2c/7"
    trace = event_trace("pumps", "pump-3", "1767225590000-0a1b2c", 7)
    assert trace == hashlib.sha256(text).hexdigest()[:32]
    assert run_trace("pumps", "7293") == hashlib.sha256(b"pumps/rounds/7293").hexdigest()[:32]
    text = f"{trace}/device.deliver/8".encode()
    assert span_id(trace, "device.deliver", 8) == hashlib.sha256(text).hexdigest()[:16]


@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.sampled_from("xy"), st.integers(0, 2**62)),
        unique=True,
        max_size=20,
    )
)
def test_messages_have_traces_of_their_own_which_never_change(
    names: list[tuple[str, str, int]],
) -> None:
    traces = [event_trace("t", *name) for name in names]
    assert len(set(traces)) == len(names)
    assert traces == [event_trace("t", *name) for name in names]
    children = [TraceParent(trace, span_id(trace, "root")).child("part", 1) for trace in traces]
    assert [child.trace for child in children] == traces
    assert len({child.span for child in children}) == len(names)


@given(traces, st.floats(0, 1), st.floats(0, 1))
def test_a_larger_share_contains_a_smaller_one_and_opentelemetry_decides_alike(
    trace: str, share: float, other: float
) -> None:
    from opentelemetry.sdk.trace.sampling import Decision, TraceIdRatioBased

    small, large = sorted((share, other))
    assert is_sampled(trace, large) >= is_sampled(trace, small)
    assert is_sampled(trace, 1.0)
    assert not is_sampled(trace, 0.0)
    decided = TraceIdRatioBased(share).should_sample(None, int(trace, 16), "x").decision
    assert is_sampled(trace, share) == (decided == Decision.RECORD_AND_SAMPLE)
