"""A device whose readings come from a real MQTT broker, and what it says of a wrong address."""

import contextlib
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_client.ipc import ask, socket_path
from edge_client.sources.live import MALFORMED
from edge_client.sources.mqtt import (
    MESSAGES,
    OVERFLOW,
    REPEATED,
    MqttSource,
    read_payload,
    settings_of,
)
from streams.contract.documents import DeviceState
from streams.contract.errors import Retryable, UsageError
from streams.contract.work import AgentRequest
from tests.compose.cli.test_cli import fails, installed, tidewheel
from tests.rig.made_up.models import TINY
from tests.rig.made_up.tiny_task import task
from tests.rig.processes.agent_process import AgentProcess, first_model
from tests.rig.processes.workers import until
from tests.rig.servers.mqtt import MqttBroker
from tests.rig.servers.secure_node import Authority
from tidewheel import Reading

ROOT = Path(__file__).parents[3]
START_US = 1_760_000_000_000_000
STEP_US = 50_000  # 20 Hz
USER = {"TIDEWHEEL_MQTT_USERNAME": "tide", "TIDEWHEEL_MQTT_PASSWORD": "wheel"}
TOPIC = "plant/pump-3/readings"


@pytest.fixture
def mqtt(tmp_path: Path) -> Iterator[MqttBroker]:
    broker = MqttBroker(tmp_path)
    yield broker
    broker.kill()


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[MqttBroker]:
    """One that lets in nobody else; amqtt keeps nothing for clients without a user."""
    broker = MqttBroker(tmp_path, USER["TIDEWHEEL_MQTT_USERNAME"], USER["TIDEWHEEL_MQTT_PASSWORD"])
    yield broker
    broker.kill()


class Device(AgentProcess):
    """`tidewheel edge run --source mqtt://…`, without a Kafka in reach."""

    def __init__(self, state: Path, url: str, **environ: str) -> None:
        words = ("--source", url, "--model", first_model(state), "--drain", "0")
        super().__init__(state, *words, environ=environ)

    def state(self) -> DeviceState | None:
        """None while it is still starting."""
        self.check()
        try:
            return ask(socket_path(self.folder), AgentRequest(op="state")).state
        except Retryable:
            return None

    def answers(self) -> int:
        state = self.state()
        return -1 if state is None else state.produced

    def skipped(self) -> dict[str, int]:
        state = self.state()
        return {} if state is None else state.skipped

    def says(self, text: str) -> bool:
        state = self.state()
        return state is not None and text in (state.error or "")

    @property
    def subscriptions(self) -> int:
        return self.log.count("subscribed to")


@pytest.fixture
def devices() -> Iterator[list[Device]]:
    made: list[Device] = []
    yield made
    for device in made:
        device.close()


def payload(*numbers: int) -> bytes:
    """A message of these readings: a lone one as an object, more as an array."""
    found = [{"time_us": START_US + STEP_US * i, "values": [i % 7, 1.0]} for i in numbers]
    return json.dumps(found[0] if len(found) == 1 else found).encode()


def url(broker: MqttBroker, topic: str = TOPIC) -> str:
    return f"mqtt://127.0.0.1:{broker.port}/{topic}"


def test_what_is_published_is_answered_and_what_is_no_reading_is_counted(
    mqtt: MqttBroker, tmp_path: Path, devices: list[Device]
) -> None:
    mqtt.start()
    device = Device(tmp_path, url(mqtt, "plant/+/readings"))
    devices.append(device)
    until(lambda: device.subscriptions == 1, "it has subscribed")
    messages = [payload(i) for i in range(20)]
    messages += [b"garbage", b"\xff", b'[{"time_us": 1}, 5]', payload(*range(20, 40))]
    mqtt.publish(TOPIC, messages)
    mqtt.publish("plant/pump-3/other", [payload(1000)])
    until(lambda: device.answers() == 3, "three segments of 20 readings, one every 10")
    assert device.skipped() == {MALFORMED: 4}
    assert device.end() == 0


def test_a_broker_that_is_killed_and_started_again_is_gone_back_to(
    mqtt: MqttBroker, tmp_path: Path, devices: list[Device]
) -> None:
    device = Device(tmp_path, url(mqtt))
    devices.append(device)
    until(lambda: device.says("MQTT at"), "it says that there is no broker")
    for round_ in range(2):
        mqtt.start()
        until(lambda round_=round_: device.subscriptions == round_ + 1, "it has subscribed")
        mqtt.publish(TOPIC, [payload(*range(100 * round_, 100 * round_ + 20))])
        until(lambda round_=round_: device.answers() == round_ + 1, "it answers")
        assert not device.says("MQTT at")
        mqtt.kill()
        until(lambda: device.says("the connection was lost"), "it says that the broker is gone")
    text = device.log
    assert "Traceback" not in text
    assert text.count("the connection was lost") == 2


def test_a_wrong_password_is_told_in_one_line_and_tried_again(
    guarded: MqttBroker, tmp_path: Path, devices: list[Device]
) -> None:
    guarded.start()
    device = Device(tmp_path, url(guarded), **{**USER, "TIDEWHEEL_MQTT_PASSWORD": "secret"})
    devices.append(device)
    until(lambda: device.says("refuses the user 'tide'"), "it says so")
    tries = guarded.log.count("Connection from")
    until(lambda: guarded.log.count("Connection from") > tries + 1, "it tries again")
    text = device.log
    lines = [line for line in text.splitlines() if "refuses" in line]
    assert len(lines) == 1
    assert "look at TIDEWHEEL_MQTT_USERNAME and TIDEWHEEL_MQTT_PASSWORD" in lines[0]
    assert "secret" not in text
    assert "Traceback" not in text


def test_what_is_published_while_a_device_is_away_comes_when_it_is_back(
    guarded: MqttBroker, tmp_path: Path, devices: list[Device]
) -> None:
    guarded.start()
    device = Device(tmp_path, url(guarded), **USER)
    devices.append(device)
    until(lambda: device.subscriptions == 1, "it has subscribed")
    assert device.end() == 0
    guarded.publish(TOPIC, [payload(*range(20))])
    again = Device(tmp_path, url(guarded), **USER)
    devices.append(again)
    until(lambda: again.answers() == 1, "it has the readings")


def test_a_broker_with_tls_is_read_where_its_authority_is_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = Authority.create(tmp_path / "tls", "ours")
    broker = MqttBroker(tmp_path, authority=authority)
    broker.start()
    stop = threading.Event()

    def source() -> MqttSource:
        address = url(broker).replace("mqtt:", "mqtts:")
        return MqttSource(settings_of(address), task, "d0", stop, lambda *_: None)

    try:
        with pytest.raises(Retryable, match="certificate verify failed"):
            next(iter(source()))
        monkeypatch.setenv("TIDEWHEEL_MQTT_CAFILE", str(authority.cafile))
        broker.publish(TOPIC, [payload(5)], retain=True)
        found = iter(source())
        assert next(found).time_us == START_US + 5 * STEP_US
        found.close()  # type: ignore[attr-defined]
    finally:
        broker.kill()


def test_what_is_not_read_in_time_is_lost_and_counted(mqtt: MqttBroker) -> None:
    mqtt.start()
    skipped: list[str] = []
    stop = threading.Event()
    source = MqttSource(
        settings_of(url(mqtt)), task, "d0", stop, lambda reason, _: skipped.append(reason)
    )
    found = iter(source)
    first: list[Reading] = []
    reader = threading.Thread(target=lambda: first.append(next(found)))
    reader.start()
    until(lambda: _keeps(mqtt, reader), "the subscription is there")
    mqtt.publish(TOPIC, [payload(i) for i in range(1, MESSAGES + 11)])
    until(lambda: len(skipped) >= 10, "what is too much is counted")
    stop.set()
    found.close()  # type: ignore[attr-defined]
    assert set(skipped) == {OVERFLOW}
    assert len(skipped) <= 11


def _keeps(mqtt: MqttBroker, reader: threading.Thread) -> bool:
    mqtt.publish(TOPIC, [payload(0)])
    reader.join(0.1)
    return not reader.is_alive()


def test_what_comes_again_is_counted_and_not_read_again(mqtt: MqttBroker) -> None:
    """The broker gives what it has retained once more."""
    mqtt.start()
    stop, counted, again = threading.Event(), list[str](), list[Reading]()
    source = MqttSource(
        settings_of(url(mqtt)), task, "d0", stop, lambda reason, _: counted.append(reason)
    )
    mqtt.publish(TOPIC, [payload(5)], retain=True)
    found = iter(source)
    assert next(found).time_us == START_US + 5 * STEP_US
    found.close()  # type: ignore[attr-defined]

    def read() -> None:
        """While a session changes hands, the broker of these tests may end the new connection with
        the old one."""
        while not stop.is_set():
            with contextlib.suppress(Retryable):
                again.extend(source)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        until(lambda: REPEATED in counted, "what came again is counted")
    finally:
        stop.set()
        reader.join(30)
    assert again == []


@given(st.binary(max_size=40) | st.recursive(
    st.none() | st.floats() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(
        st.sampled_from(["time_us", "values", "label", "x", "y"]), inner)
).map(lambda found: json.dumps(found).encode()))  # fmt: skip
def test_any_payload_is_readings_or_counted(data: bytes) -> None:
    skipped: list[str] = []
    for reading in read_payload(task, data, lambda reason, _: skipped.append(reason)):
        assert len(reading.values) == 2
    assert set(skipped) <= {MALFORMED}


def test_an_address_is_read_with_its_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIDEWHEEL_MQTT_USERNAME", "tide")
    monkeypatch.setenv("TIDEWHEEL_MQTT_PORT", "7")  # the address says it
    found = settings_of("mqtts://[::1]/a/+/b/#")
    assert (found.host, found.port, found.topic, found.tls) == ("::1", 8883, "a/+/b/#", True)
    assert found.username == "tide"
    assert settings_of("mqtt://broker/t").port == 1883
    assert settings_of("mqtt://broker:7/t").address == "broker:7"


@pytest.mark.parametrize(
    ("url", "what"),
    [
        ("mqtt://broker", "mqtt://HOST:PORT/TOPIC is the form"),
        ("mqtt://broker/", "mqtt://HOST:PORT/TOPIC is the form"),
        ("mqtt://tide:wheel@broker/t", "TIDEWHEEL_MQTT_USERNAME and _PASSWORD name the user"),
        ("mqtt://broker:70000/t", "its port"),
        ("mqtt://broker/a#", "stand for whole levels"),
        ("mqtt://broker/#/a", "stand for whole levels"),
    ],
)
def test_a_wrong_address_says_what_is_the_form(url: str, what: str) -> None:
    with pytest.raises(UsageError, match=what) as found:
        settings_of(url)
    assert "wheel@" not in str(found.value)


def test_a_file_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIDEWHEEL_MQTT_CAFILE", "/nowhere.pem")
    with pytest.raises(
        UsageError, match=r"TIDEWHEEL_MQTT_CAFILE: .*/nowhere.pem is not a readable file"
    ):
        settings_of("mqtts://broker/t")


@pytest.mark.parametrize("source", ["kafka://here/t", "file", ""])
def test_a_source_that_is_none_says_which_there_are(source: str, tmp_path: Path) -> None:
    command = ("edge", "run", TINY, "--device", "d0", "--source", source)
    done = tidewheel(*command, folder=tmp_path, PYTHONPATH=str(ROOT))
    fails(done, 2, "task, stdin, or mqtt://HOST:PORT/TOPIC")


def test_a_missing_library_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "paho.py").write_text("raise ImportError('no module named paho')\n")
    command = ("edge", "run", TINY, "--device", "d0", "--source", "mqtt://broker/t")
    done = installed(*command, folder=tmp_path, PYTHONPATH=f"{tmp_path}:{ROOT}")
    fails(done, 2, "pip install 'tidewheel[mqtt]'")
