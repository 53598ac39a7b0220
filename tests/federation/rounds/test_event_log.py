from pathlib import Path
from typing import Any

import pytest

from federation.rounds.event_log import RETRY_S, EventLog, why_failed
from streams.contract.documents import RoundEvent, RoundKind
from streams.contract.errors import BrokerUnavailable
from tests.federation.rounds.test_run import FakeKafka


class Broker(FakeKafka):
    """Away while `away`; keeps what it was sent."""

    away, connected = False, 0

    def connect(self) -> "Broker":
        if self.away:
            raise BrokerUnavailable("no broker")
        self.connected += 1
        return self

    def put(self, topic: str, key: bytes, *rest: Any, **named: Any) -> int:
        if self.away:
            raise BrokerUnavailable("no broker")
        assert (topic, key) == ("tiny.v1.rounds", b"7")
        return super().put(topic, key, *rest, **named)

    def close(self, timeout_s: float = 2.0) -> None:
        self.connected -= 1

    @property
    def kinds(self) -> list[str]:
        return [event.kind for event in self.events]


def test_events_wait_for_the_broker_in_order_and_stand_in_the_file(tmp_path: Path) -> None:
    broker, now = Broker(), [0.0]
    path = tmp_path / "7" / "rounds.jsonl"
    journal = EventLog("tiny.v1", "7", path, broker.connect, clock=lambda: now[0])
    journal.publish("started", round=1)
    broker.away = True
    journal.publish("admitted", round=1, device="d0")
    broker.away = False
    journal.publish("aggregated", round=1)  # too soon after the failure: not even tried
    assert broker.kinds == ["started"]
    assert journal.pending == 2
    now[0] = RETRY_S
    journal.publish("evaluated", round=1)
    journal.close()
    expected = ["started", "admitted", "aggregated", "evaluated"]
    assert broker.kinds == expected
    assert broker.connected == 0
    lines = path.read_bytes().splitlines()
    assert [RoundEvent.decode(line).kind for line in lines] == expected


def test_a_broker_that_never_comes_does_not_stop_a_run(tmp_path: Path) -> None:
    broker = Broker()
    broker.away = True
    journal = EventLog("tiny.v1", "7", tmp_path / "rounds.jsonl", broker.connect)
    journal.publish("started", round=1)
    journal.close(timeout_s=0.0)
    assert journal.pending == 1


def test_a_run_without_a_broker_writes_its_file_and_waits_for_nothing(tmp_path: Path) -> None:
    path = tmp_path / "7" / "rounds.jsonl"
    journal = EventLog("tiny.v1", "7", path, None)
    journal.publish("started", round=1)
    assert journal.pending == 0
    with pytest.raises(BrokerUnavailable, match="has no broker"):
        journal.producer()
    journal.close()
    assert [RoundEvent.decode(line).kind for line in path.read_bytes().splitlines()] == ["started"]


@pytest.mark.parametrize(
    ("kind", "fields", "why"),
    [
        ("finished", {"reason": "failed: too few"}, "too few"),
        ("finished", {"reason": "rejected: worse"}, None),
        ("failed", {"reason": "the run was interrupted: OSError()"}, "the run was interrupted:"),
        ("failed", {"reason": "the registry is away: starting over"}, None),
        ("failed", {"reason": "the run was late", "device": "d0"}, None),
        ("started", {}, None),
    ],
)
def test_a_journal_says_why_its_run_failed_if_it_ends_with_that(
    tmp_path: Path, kind: RoundKind, fields: dict[str, str], why: str | None
) -> None:
    folder = tmp_path / "7"
    assert why_failed(folder) is None
    path = folder / "rounds.jsonl"
    journal = EventLog("tiny.v1", "7", path, None)
    journal.publish("failed", reason="the run was resumed")
    journal.publish(kind, **fields)
    found = why_failed(folder)
    assert found is None if why is None else (found or "").startswith(why)
    path.write_bytes(path.read_bytes() + b'{"kind": "fin')  # killed while it wrote
    assert why_failed(folder) is None
