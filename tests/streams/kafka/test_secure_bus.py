"""Kafka with TLS, client certificates and passwords, as the device and the commands use it."""

import logging
import ssl
import time
import uuid
from contextlib import closing
from pathlib import Path

import pytest
from kafka.admin import KafkaAdminClient
from kafka.errors import SaslAuthenticationFailedError

from streams.contract.errors import BrokerUnavailable, TopicMissing, UsageError
from streams.contract.topics import TopicSpec
from streams.kafka.admin import ensure_topics, group_positions, probe
from streams.kafka.election import Election
from streams.kafka.producer import Producer
from streams.kafka.reader import Reader
from streams.kafka.refusals import HUNG_UP, Listener, explain
from streams.kafka.settings import BrokerSettings
from tests.rig.servers.secure_node import SecureNode


@pytest.mark.kafka
@pytest.mark.parametrize("door", ["tls", "plain-password", "scram-password"])
def test_everything_of_the_bus_works_behind_each_door(secure_node: SecureNode, door: str) -> None:
    settings, topic = secure_node.settings(door), f"bus-{uuid.uuid4().hex[:8]}"
    assert probe(settings, 10.0)
    ensure_topics(settings, [TopicSpec(topic, 1, "delete", -1)])
    producer = Producer(settings)
    for i in range(100):
        producer.put(topic, b"k", b"%d" % i * 1000, [("n", b"%d" % i)])
    producer.close()
    reader = Reader(settings, [topic])
    assert [dict(m.headers)["n"] for m in reader.read_to_end()] == [b"%d" % i for i in range(100)]
    reader.close()
    [position] = group_positions(settings, "nobody", topic, 10.0)
    assert (position.begin, position.end, position.committed) == (0, 100, None)


@pytest.mark.kafka
def test_a_client_that_asks_for_a_topic_does_not_create_it(secure_node: SecureNode) -> None:
    """It would have Kafka's usual partitions, and no compaction: no worker starts with it."""
    settings, topic = secure_node.settings("plain"), f"absent-{uuid.uuid4().hex[:8]}"
    producer = Producer(settings)
    with pytest.raises(TopicMissing, match=topic):
        producer.put(topic, b"k", b"v", [])
    producer.close()
    with pytest.raises(TopicMissing, match=topic):
        Reader(settings, [topic], timeout_s=3.0)
    admin = KafkaAdminClient(bootstrap_servers=settings.bootstrap)
    with closing(admin):
        assert topic not in admin.list_topics()


def wrong(node: SecureNode, what: str) -> BrokerSettings:
    strange = [str(path) for path in node.stranger.issue("client")]
    return {
        "scram password": lambda: node.settings("scram-password", password="wrong"),
        "plain password": lambda: node.settings("plain-password", password="wrong"),
        "authority": lambda: node.settings("tls", cafile=str(node.stranger.cafile)),
        "no authority": lambda: node.settings("plain-password", cafile=None),
        "no certificate": lambda: node.settings("tls", certfile=None, keyfile=None),
        "certificate": lambda: node.settings("tls", certfile=strange[0], keyfile=strange[1]),
        "protocol": lambda: node.settings("tls", bootstrap=node.settings("plain").bootstrap),
        "no protocol": lambda: node.settings("plain", bootstrap=node.settings("tls").bootstrap),
        "no user": lambda: node.settings(
            "tls", bootstrap=node.settings("plain-password").bootstrap, certfile=None, keyfile=None
        ),
    }[what]()


@pytest.mark.kafka
@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("scram password", "TIDEWHEEL_KAFKA_PASSWORD"),
        ("plain password", "TIDEWHEEL_KAFKA_PASSWORD"),
        ("authority", "certificate is not trusted .* TIDEWHEEL_KAFKA_CAFILE"),
        ("no authority", "certificate is not trusted .* TIDEWHEEL_KAFKA_CAFILE"),
        ("no certificate", "a client certificate that it trusts .* TIDEWHEEL_KAFKA_CERTFILE"),
        ("certificate", "a client certificate that it trusts .* TIDEWHEEL_KAFKA_CERTFILE"),
        ("protocol", "TIDEWHEEL_KAFKA_SECURITY_PROTOCOL"),
        ("no protocol", "TIDEWHEEL_KAFKA_SECURITY_PROTOCOL"),
        ("no user", "TIDEWHEEL_KAFKA_SECURITY_PROTOCOL"),
    ],
)
def test_what_is_wrong_is_said_in_a_line_with_what_to_do(
    secure_node: SecureNode, what: str, says: str
) -> None:
    settings = wrong(secure_node, what)
    with pytest.raises(BrokerUnavailable, match=says) as raised:
        Producer(settings, bootstrap_timeout_s=1.0)
    assert "\n" not in str(raised.value)
    assert settings.bootstrap in str(raised.value)
    assert settings.password is None or settings.password not in str(raised.value).split()
    assert not probe(settings, 0.5)


@pytest.mark.kafka
@pytest.mark.parametrize("what", ["plain password", "protocol"])
def test_a_controller_that_is_refused_says_so(secure_node: SecureNode, what: str) -> None:
    with pytest.raises(BrokerUnavailable, match="TIDEWHEEL_KAFKA_"):
        Election(wrong(secure_node, what), "group", "topic")


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("certificate has expired", "renew it"),
        ("IP address mismatch, certificate is not valid for '127.0.0.1'.", "use an address"),
        ("unable to get local issuer certificate", "set TIDEWHEEL_KAFKA_CAFILE"),
    ],
)
def test_what_is_wrong_with_a_certificate_says_what_to_do(text: str, advice: str) -> None:
    failed = f"[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: {text} (_ssl.c:992)"
    said = explain(ssl.SSLCertVerificationError(failed))
    assert said is not None
    assert said.rpartition("): ")[2].startswith(advice)


def test_a_broker_that_is_only_away_is_told_as_that() -> None:
    with pytest.raises(BrokerUnavailable, match="no Kafka broker answers"):
        Producer(BrokerSettings(bootstrap="127.0.0.1:1"), bootstrap_timeout_s=1)
    assert explain(ConnectionRefusedError("111 ECONNREFUSED")) is None


@pytest.mark.parametrize("missing", ["username", "password"])
def test_a_protocol_with_passwords_needs_user_and_password(missing: str) -> None:
    given = {"security_protocol": "SASL_SSL", "username": "u", "password": "p"}
    del given[missing]
    with pytest.raises(
        UsageError, match=f"TIDEWHEEL_KAFKA_{missing.upper()}: is needed for SASL_SSL"
    ):
        BrokerSettings.read(**given)


@pytest.mark.parametrize("field", ["cafile", "certfile", "keyfile"])
def test_a_file_that_cannot_be_read_is_named(field: str, tmp_path: Path) -> None:
    what = rf"TIDEWHEEL_KAFKA_{field.upper()}: .*absent\.pem is not a readable file"
    with pytest.raises(UsageError, match=what):
        BrokerSettings.read(**{field: str(tmp_path / "absent.pem")})


def test_a_broker_that_hangs_up_after_a_refusal_has_refused() -> None:
    listener, began = Listener(), time.monotonic()
    log = logging.Logger("broker")
    log.addHandler(listener)
    log.warning("%s", ConnectionError("disconnected"))
    assert listener.since(began) == HUNG_UP
    log.warning("%s", SaslAuthenticationFailedError("Authentication failed"))
    refused, began = listener.since(began), time.monotonic()
    assert "TIDEWHEEL_KAFKA_PASSWORD" in (refused or "")
    assert refused != HUNG_UP
    assert listener.since(began) is None
    log.warning("%s", ConnectionError("disconnected"))
    assert listener.since(began) == refused
