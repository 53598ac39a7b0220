from pathlib import Path

import pytest

from streams.kafka.settings import BrokerSettings


def test_a_password_may_come_from_a_containers_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tidewheel_kafka_username").write_text("pumps\n")
    (tmp_path / "tidewheel_kafka_password").write_text("secret\n")
    monkeypatch.setenv("TIDEWHEEL_KAFKA_SECURITY_PROTOCOL", "SASL_SSL")
    found = BrokerSettings(_secrets_dir=tmp_path)  # type: ignore[call-arg]
    assert (found.username, found.password) == ("pumps", "secret")
    monkeypatch.setenv("TIDEWHEEL_KAFKA_PASSWORD", "named")
    assert BrokerSettings(_secrets_dir=tmp_path).password == "named"  # type: ignore[call-arg]
