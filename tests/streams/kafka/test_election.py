"""Of several processes one leads, on a real Kafka; another takes over when it ends or is killed."""

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from streams.contract.errors import BrokerUnavailable
from streams.contract.topics import topic_specs
from streams.kafka.admin import ensure_topics
from streams.kafka.election import SESSION_S, Election
from streams.kafka.settings import BrokerSettings

pytestmark = pytest.mark.kafka

MEMBER = """
import sys, time
from streams.kafka.settings import BrokerSettings
from streams.kafka.election import Election
election = Election(BrokerSettings(bootstrap=sys.argv[1]), "g-elected", "elected.releases")
while not election.leads():
    time.sleep(0.05)
print("leads", flush=True)
while election.leads():
    time.sleep(0.05)
"""


def until(condition: Callable[[], bool], what: str, timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def test_one_leads_and_another_takes_over(kafka: BrokerSettings) -> None:
    ensure_topics(kafka, topic_specs("elected"))
    command = [sys.executable, "-c", MEMBER, kafka.bootstrap]
    first = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[3])
    try:
        assert first.stdout is not None
        found: list[bytes] = []
        reader = threading.Thread(target=lambda: found.append(first.stdout.readline()))  # type: ignore[union-attr]
        reader.start()
        until(lambda: found == [b"leads\n"], "the first leads")
        second = Election(kafka, "g-elected", "elected.releases")
        third = Election(kafka, "g-elected", "elected.releases")
        looks = [(second.leads(), third.leads()) for _ in range(60)]
        assert looks == [(False, False)] * 60  # six seconds, in which both have joined
        first.send_signal(signal.SIGKILL)
        killed = time.monotonic()
        both = [False, False]

        def taken_over() -> bool:
            both[:] = second.leads(), third.leads()
            return any(both)

        until(taken_over, "another leads", SESSION_S + 60)
        assert time.monotonic() - killed > 1.0  # not before its session was over
        assert both in ([True, False], [False, True])
        leader, other = (second, third) if both[0] else (third, second)
        leader.close()
        until(other.leads, "the last leads")
        other.close()
    finally:
        first.kill()
        first.communicate()


def test_without_a_broker_nobody_leads() -> None:
    with pytest.raises(BrokerUnavailable):
        Election(BrokerSettings(bootstrap="127.0.0.1:1"), "g", "t")
