"""Of several processes one leads, on a real Kafka; another takes over when it ends or is killed."""

import signal
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest
from kafka import KafkaConsumer

from streams.contract.errors import BrokerUnavailable
from streams.contract.topics import topic_specs
from streams.kafka.admin import ensure_topics
from streams.kafka.election import SESSION_S, Election
from streams.kafka.settings import BrokerSettings
from tests.rig.processes.polling import until
from tests.rig.servers.proxy import Proxy
from tests.rig.servers.secure_node import SecureNode

pytestmark = pytest.mark.kafka

MEMBER = """
import sys, time
from streams.kafka.settings import BrokerSettings
from streams.kafka.election import Election
member = Election(BrokerSettings(bootstrap=sys.argv[1]), *sys.argv[2:])
while not member.leads():
    time.sleep(0.05)
print("leads", flush=True)
while member.leads():
    time.sleep(0.05)
"""


def test_one_leads_and_another_takes_over(kafka: BrokerSettings) -> None:
    name = "elected"
    ensure_topics(kafka, topic_specs(name))
    member = [sys.executable, "-c", MEMBER, kafka.bootstrap, f"g-{name}", f"{name}.releases"]
    first = subprocess.Popen(member, stdout=subprocess.PIPE, cwd=Path(__file__).parents[3])
    try:
        assert first.stdout is not None
        found: list[bytes] = []
        reader = threading.Thread(target=lambda: found.append(first.stdout.readline()))  # type: ignore[union-attr]
        reader.start()
        until(lambda: found == [b"leads\n"], "the first leads")
        second = Election(kafka, f"g-{name}", f"{name}.releases")
        third = Election(kafka, f"g-{name}", f"{name}.releases")
        assert not second.leads()
        assert not third.leads()
        until(lambda: second.another_leads() and third.another_leads(), "they know the first")
        first.send_signal(signal.SIGKILL)
        killed = time.monotonic()
        until(lambda: second.leads() or third.leads(), "another leads", SESSION_S + 60)
        assert time.monotonic() - killed > 1.0  # not before its session was over
        assert (second.leads(), third.leads()) in ((True, False), (False, True))
        leader, other = (second, third) if second.leads() else (third, second)
        leader.close()
        until(other.leads, "the last leads")
        assert not other.another_leads()
        other.close()
    finally:
        first.kill()
        first.communicate()


def test_who_no_longer_asks_gives_up_the_lead(kafka: BrokerSettings) -> None:
    ensure_topics(kafka, topic_specs("silent"))
    hanging = Election(kafka, "g-silent", "silent.releases", asked_s=3.0)
    until(hanging.leads, "it leads")
    other = Election(kafka, "g-silent", "silent.releases")
    until(other.leads, "the other leads")
    with pytest.raises(BrokerUnavailable, match="nobody asked"):
        hanging.leads()
    hanging.close()
    other.close()


def test_a_leader_that_no_broker_answers_gives_up_the_lead_and_has_it_again(
    secure_node: SecureNode,
) -> None:
    ensure_topics(secure_node.settings("plain"), topic_specs("alone"))
    through = secure_node.settings("proxied", bootstrap=f"127.0.0.1:{secure_node.proxy_port}")
    port, door = secure_node.proxy_port, secure_node.ports["proxied"]
    with closing(Proxy(port, door)):
        member = Election(through, "g-alone", "alone.releases")
        until(member.leads, "it leads")
    until(lambda: not member.leads(), "it knows that its session is over")
    with closing(Proxy(port, door)):
        until(member.leads, "it leads again")
        member.close()


def test_a_member_whose_polls_end_within_a_join_joins_all_the_same(kafka: BrokerSettings) -> None:
    """It joins before the topic exists, and again when it does, in polls of a millisecond without a
    pause: what is answered between two polls the library discards, and joins anew."""
    for number in range(3):
        topic = topic_specs(f"joined-{number}")[0]
        member = KafkaConsumer(
            topic.name, **kafka.client_options(), group_id=f"g-joined-{number}",
            allow_auto_create_topics=False, metadata_max_age_ms=300,
        )  # fmt: skip
        with closing(member):
            until(lambda m=member: m.poll(50) or m._coordinator.stable(), "it has joined")  # type: ignore[misc]
            ensure_topics(kafka, [topic])
            deadline = time.monotonic() + 90
            while not member.assignment():
                assert time.monotonic() < deadline, "it has no partition"
                member.poll(1)


def test_without_a_broker_nobody_leads() -> None:
    with pytest.raises(BrokerUnavailable):
        Election(BrokerSettings(bootstrap="127.0.0.1:1"), "g", "t")
