from pathlib import Path

import pytest

from streams.contract.errors import UsageError
from streams.kafka import settings
from streams.kafka.settings import BrokerSettings


def test_a_password_may_come_from_a_containers_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tidewheel_kafka_username").write_text("pumps\n")
    (tmp_path / "tidewheel_kafka_password").write_text("secret\n")
    monkeypatch.setenv("TIDEWHEEL_KAFKA_SECURITY_PROTOCOL", "SASL_SSL")
    monkeypatch.setattr(settings, "SECRETS", tmp_path)
    found = BrokerSettings.read()
    assert (found.username, found.password) == ("pumps", "secret")
    monkeypatch.setenv("TIDEWHEEL_KAFKA_PASSWORD", "named")
    assert BrokerSettings.read().password == "named"


def test_what_is_given_counts_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIDEWHEEL_KAFKA", "there:9092")
    monkeypatch.setenv("TIDEWHEEL_KAFKA_REPLICATION", "2")
    assert BrokerSettings.at().bootstrap == "there:9092"
    assert BrokerSettings.at("here:1").bootstrap == "here:1"
    assert BrokerSettings.at("here:1").replication == 2
    with pytest.raises(UsageError, match="unknown field `topic`"):
        BrokerSettings.read(bootstrap="here:1", topic="x")


def test_a_variable_with_a_wrong_value_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIDEWHEEL_KAFKA_REPLICATION", "many")
    with pytest.raises(UsageError, match="TIDEWHEEL_KAFKA_REPLICATION: Expected `int"):
        BrokerSettings.read()
