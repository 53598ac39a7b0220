"""What becomes of messages that a broker never takes, on a fake broker: nothing but what is too
large alone is lost, each seq arrives or is declared, and the account says so."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_client.spool.frames import EVENTS, Frame, SpoolPosition
from edge_client.spool.queue import Spool
from edge_client.uplink.messages import PROBE_S, ROWS, Refusals
from edge_client.uplink.uplink import Uplink
from streams.contract.errors import BrokerUnavailable, MessageRefused
from streams.contract.events.messages import Drop, Headers
from streams.contract.events.records import EventBatch
from tests.edge_client.uplink.test_uplink import fill, spool, uplink_of
from tests.rig.made_up.uplink_broker import Clock, Done, FakeBroker

__all__ = ["spool"]


def turn(uplink: Uplink) -> None:
    """A step of the thread, and what it does about a refusal."""
    try:
        uplink.step()
    except MessageRefused:
        uplink._close()


def drain(uplink: Uplink, broker: FakeBroker, spool: Spool, most: int) -> None:
    for _ in range(200):
        turn(uplink)
        broker.refuse_larger(most)
        if not spool.account().pending:
            return
    raise AssertionError(f"not sent: {spool.account()}")


def test_messages_become_as_small_as_the_broker_wants_and_nothing_is_lost(tmp_path: Path) -> None:
    spool, broker = Spool(tmp_path), FakeBroker()
    fill(spool, 300)
    drain(uplink_of(spool, broker, Clock()), broker, spool, 4_000)
    assert all(isinstance(batch, EventBatch) for batch in broker.taken)
    assert list(broker.seqs) == [(0, 299)]
    assert spool.account().dropped == {}


def test_what_is_too_large_alone_is_declared_in_its_place_and_counted(spool: Spool) -> None:
    broker = FakeBroker()
    fill(spool, 20)
    drain(uplink_of(spool, broker, Clock()), broker, spool, 100)
    assert {d.reason for d in broker.taken if isinstance(d, Drop)} == {"too-large"}
    assert list(broker.seqs) == [(0, 19)]
    assert spool.account().dropped == {"too-large": 20}
    assert spool.audit() == spool.account()
    fill(spool, 5)
    drain(uplink_of(spool, broker, Clock()), broker, spool, 10**6)
    assert (spool.account().delivered, spool.account().dropped) == (5, {"too-large": 20})


def test_what_the_library_refuses_by_itself_is_declared_as_well(spool: Spool) -> None:
    class Strict(FakeBroker):
        def send(self, topic: str, key: bytes, value: bytes, headers: Headers, done: Done) -> None:
            if len(value) > 100 and not topic.endswith(".fleet"):
                raise MessageRefused("too-large", f"{len(value)} bytes")
            super().send(topic, key, value, headers, done)

    broker = Strict()
    fill(spool, 7)
    drain(uplink_of(spool, broker, Clock()), broker, spool, 10**6)
    assert list(broker.seqs) == [(0, 6)]
    assert spool.account().dropped == {"too-large": 7}


def test_a_crash_before_a_declaration_is_settled_declares_again(
    spool: Spool, tmp_path: Path
) -> None:
    broker = FakeBroker()
    fill(spool, 3)
    uplink = uplink_of(spool, broker, Clock())
    while len(broker.taken) < 3:
        turn(uplink)
        broker.refuse_larger(100)
    again = Spool(tmp_path)  # the broker has the declarations, and the spool does not know it
    assert again.account().pending == 3
    drain(uplink_of(again, broker, Clock()), broker, again, 100)
    assert len(broker.taken) == 6
    assert again.account().dropped == {"too-large": 3}


def test_a_declaration_that_is_refused_is_waited_for(spool: Spool) -> None:
    broker = FakeBroker()
    spool.declare_lost(3, "metered")
    uplink = uplink_of(spool, broker, Clock())
    uplink.step()
    broker.refuse_larger(-1)
    with pytest.raises(BrokerUnavailable) as raised:
        uplink.step()
    assert not isinstance(raised.value, MessageRefused)
    assert spool.account().pending == 3


def test_larger_messages_are_tried_again_after_a_while() -> None:
    clock = Clock()
    refusals = Refusals(clock)
    refusals.note(0, 99, "too-large")
    assert refusals.rows == 50
    clock.now += PROBE_S
    assert refusals.rows == 100
    assert refusals.rows == 100
    for _ in range(9):
        clock.now += PROBE_S
        assert refusals.rows <= ROWS
    assert refusals.rows == ROWS


@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=6),
    st.integers(0, 1000),
    st.sets(st.integers(0, 1250)),
    st.integers(1, 100),
)
def test_every_event_of_the_frames_is_in_one_message(
    counts: list[int], first: int, refused: set[int], rows: int
) -> None:
    frames, at = [], first
    for count in counts:
        frames.append(Frame(EVENTS, at, count, 0, b"", SpoolPosition(0, 0, at + count)))
        at += count
    refusals = Refusals(Clock())
    refusals.note(0, 2 * rows - 1, "too-large")
    for seq in refused:
        refusals.note(seq, seq, "too-large")
    runs = list(refusals.runs(frames))
    assert [seq for a, b, _ in runs for seq in range(a, b + 1)] == list(range(first, at))
    for a, b, reason in runs:
        assert b - a < rows
        assert {seq in refused for seq in range(a, b + 1)} == {reason is not None}
    assert [d.first for d in refusals.settle(frames)] == sorted(refused & {*range(first, at)})
    assert refusals.among(frames) == []
