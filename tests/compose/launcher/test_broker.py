import json
import os
import signal
import socket
from pathlib import Path

import pytest

from compose.launcher import broker
from streams.contract.errors import UsageError
from streams.contract.topics import TopicSpec
from streams.kafka.admin import ensure_topics, probe
from streams.kafka.producer import Producer
from streams.kafka.reader import Reader
from streams.kafka.settings import BrokerSettings
from tests.rig.servers.kafka import require, serving, with_kafka


def kafka_home(tmp_path: Path, start: str = "#!/bin/sh\nexit 3\n") -> Path:
    """A folder laid out like Kafka whose format works and whose server is `start`."""
    home = tmp_path / "kafka"
    (home / "bin").mkdir(parents=True)
    script = '#!/bin/sh\nmkdir -p "$(sed -n s/^log.dirs=//p "$4")"\n'
    for name, text in (("kafka-storage.sh", script), ("kafka-server-start.sh", start)):
        (home / "bin" / name).write_text(text)
        (home / "bin" / name).chmod(0o755)
    return home


def java(tmp_path: Path) -> Path:
    path = tmp_path / "java" / "bin" / "java"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path.parent.parent


def test_an_address_comes_before_everything_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environ = {"TIDEWHEEL_KAFKA": "env:1", "KAFKA_HOME": "/nowhere"}
    for name, value in {"SECURITY_PROTOCOL": "SASL_SSL", "USERNAME": "me", "PASSWORD": "x"}.items():
        monkeypatch.setenv(f"TIDEWHEEL_KAFKA_{name}", value)
    by_flag = broker.choose(tmp_path, "flag:2", environ)
    by_env = broker.choose(tmp_path, None, environ)
    assert (by_flag.kind, by_flag.settings.bootstrap) == ("external", "flag:2")
    assert (by_env.kind, by_env.settings.bootstrap) == ("external", "env:1")
    assert by_env.settings.security_protocol == "SASL_SSL"
    assert by_env.settings.username == "me"
    assert not list(tmp_path.iterdir())


def test_kafka_with_a_java_comes_before_the_embedded_broker(tmp_path: Path) -> None:
    environ = {"KAFKA_HOME": str(kafka_home(tmp_path)), "JAVA_HOME": str(java(tmp_path))}
    choice = broker.choose(tmp_path, None, environ)
    assert choice.kind == "kafka"
    assert "kafka" in choice.why
    on_path = {"PATH": f"{tmp_path}/kafka/bin:{tmp_path}/java/bin"}
    assert broker.choose(tmp_path, None, on_path).kind == "kafka"


def test_without_a_java_the_embedded_broker_is_used_and_says_what_it_loses(tmp_path: Path) -> None:
    choice = broker.choose(tmp_path, None, {"KAFKA_HOME": str(kafka_home(tmp_path)), "PATH": ""})
    assert choice.kind == "embedded"
    assert "needs a Java" in choice.why
    assert "loses acknowledged data" in choice.why


def test_a_kafka_home_without_kafka_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"has no bin/kafka-storage.sh"):
        broker.choose(tmp_path, None, {"KAFKA_HOME": str(tmp_path), "PATH": ""})


def test_nothing_at_all_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    with pytest.raises(UsageError, match="--kafka HOST:PORT") as caught:
        broker.choose(tmp_path, None, {"PATH": ""})
    assert "KAFKA_HOME" in str(caught.value)
    assert caught.value.exit_code == 2


def test_the_ports_stay_with_the_state_folder(tmp_path: Path) -> None:
    first = broker.choose(tmp_path / "a", None, {"PATH": ""})
    again = broker.choose(tmp_path / "a", None, {"PATH": ""})
    other = broker.choose(tmp_path / "b", None, {"PATH": ""})
    assert first.settings == again.settings != other.settings


def test_the_superlinks_port_stays_too_unless_another_program_has_it(tmp_path: Path) -> None:
    port = broker.superlink_port(tmp_path)
    assert broker.superlink_port(tmp_path) == port
    with socket.socket() as other:
        other.bind((broker.HOST, port))
        other.listen()
        another = broker.superlink_port(tmp_path)
    assert another != port
    assert broker.superlink_port(tmp_path) == another


def test_the_storage_is_formatted_once_and_the_node_is_for_this_machine(tmp_path: Path) -> None:
    environ = {"KAFKA_HOME": str(kafka_home(tmp_path)), "JAVA_HOME": str(java(tmp_path))}
    state = tmp_path / "état"
    choice = broker.choose(state, None, environ)
    # The stand-in format makes the folder that the properties name, escapes and all.
    (state / "broker" / "data").mkdir()
    launch = broker.command(choice, state)
    text = (state / "broker" / "server.properties").read_text()
    settings = dict(line.split("=", 1) for line in text.splitlines())
    ports = json.loads((state / "broker" / "ports.json").read_text())
    assert settings["listeners"] == (
        f"PLAINTEXT://127.0.0.1:{ports['broker']},CONTROLLER://127.0.0.1:{ports['controller']}"
    )
    assert settings["log.dirs"].endswith("/\\u00e9tat/broker/data")
    assert settings["auto.create.topics.enable"] == "false"
    assert "-Xmx256m" in launch.env["KAFKA_HEAP_OPTS"].split()
    assert launch.env["JAVA_HOME"] == str(tmp_path / "java")


def put_and_read_back(settings: BrokerSettings, topic: str, text: bytes) -> list[bytes | None]:
    ensure_topics(settings, [TopicSpec(topic, 1, "delete", -1)])
    producer = Producer(settings)
    producer.put(topic, b"k", text)
    producer.close()
    reader = Reader(settings, [topic])
    found = [message.value for message in reader.read_to_end()]
    reader.close()
    return found


@pytest.mark.kafka
def test_kafka_goes_on_with_the_same_cluster_after_a_kill(tmp_path: Path) -> None:
    environ = with_kafka()
    choice = broker.choose(tmp_path, None, environ)
    require(choice, environ)
    with serving(choice, tmp_path, tmp_path / "log") as process:
        assert process is not None
        assert put_and_read_back(choice.settings, "kept", b"one") == [b"one"]
        with pytest.raises(UsageError, match="is in use: free it"):
            broker.command(choice, tmp_path)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)
    again = broker.choose(tmp_path, None, environ)
    assert again.settings == choice.settings
    with serving(again, tmp_path, tmp_path / "log") as process:
        assert put_and_read_back(again.settings, "kept", b"two") == [b"one", b"two"]
    assert process is not None
    assert process.poll() is not None
    assert not probe(again.settings, 0.5)


def test_the_embedded_broker_serves(embedded: BrokerSettings) -> None:
    assert put_and_read_back(embedded, "tried", b"one") == [b"one"]
