"""Readings from an MQTT broker: `mqtt://HOST:PORT/TOPIC`, or `mqtts://` over TLS.

The topic may have wildcards. A message is one reading as JSON, or an array of readings, in the
form of sources.py; what cannot be read is counted. MQTT 3.1.1, QoS 1, and a session that the broker
keeps under the name tidewheel-<task>-<device>: what is published while the device is away comes
when it is back, as far as the broker keeps it.

A message is acknowledged when it is in the inbox, which holds MESSAGES and BYTES; what does not fit
is lost and counted. What the broker sends again, or has retained, is passed over and counted where
it is older than the last reading, or of its time and the same. A connection that fails or is lost
ends the iteration with an error: the agent takes the source up again, after a pause.
"""

import contextlib
import json
import logging
import re
import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from edge_client.sources.live import MALFORMED, UNREADABLE, json_reading
from edge_client.sources.replay import Skip
from streams.contract.errors import Retryable, UsageError
from streams.contract.task import Reading, Task
from streams.kafka.settings import FromEnvironment, check_readable

try:
    import paho.mqtt.client as paho
    from paho.mqtt.enums import CallbackAPIVersion
except ImportError as exc:
    raise UsageError("readings from MQTT need a library: pip install 'tidewheel[mqtt]'") from exc

log = logging.getLogger(__name__)

OVERFLOW, REPEATED = "source-overflow", "repeated"
MESSAGES, BYTES = 1000, 16_000_000
ANSWER_S = 10.0  # for the broker to say something about a connection or a subscription
LOOK_S = 0.2
KEEPALIVE_S = 30
REFUSED = 128  # reason codes from here on are failures
URL = re.compile(r"(mqtts?)://([^/@:\[\]]+|\[[^/@\]]+\])(?::(\d{1,5}))?/(.+)")


class MqttSettings(FromEnvironment):
    """Where readings are published and how to get them: the address is an option of the command,
    the rest is read from TIDEWHEEL_MQTT_<FIELD>. `cafile` is for a CA that the system lacks."""

    PREFIX: ClassVar[str] = "TIDEWHEEL_MQTT_"

    host: str
    port: int
    topic: str
    tls: bool
    username: str | None = None
    password: str | None = None
    cafile: str | None = None

    def __post_init__(self) -> None:
        check_readable(self, "cafile")

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"


def settings_of(url: str) -> MqttSettings:
    """The settings that a URL and the environment make; UsageError says what is wrong with them."""
    found = URL.fullmatch(url)
    if found is None:
        secret = "; TIDEWHEEL_MQTT_USERNAME and _PASSWORD name the user" if "@" in url else ""
        shown = re.sub(r"//[^/]*@", "//...@", url)
        raise UsageError(f"--source {shown}: mqtt://HOST:PORT/TOPIC is the form{secret}")
    scheme, host, port, topic = found.groups()
    if not _is_filter(topic):
        raise UsageError(f"--source {url}: + and # stand for whole levels, # for the last ones")
    tls = scheme == "mqtts"
    number = int(port) if port else 8883 if tls else 1883
    if not 0 < number < 65_536:
        raise UsageError(f"--source {url}: its port is not one from 1 to 65,535")
    return MqttSettings.read(host=host.strip("[]"), port=number, topic=topic, tls=tls)


def _is_filter(topic: str) -> bool:
    levels = topic.split("/")
    plain = all(level in ("+", "#") or not {"+", "#"} & set(level) for level in levels)
    return plain and "#" not in levels[:-1] and "\0" not in topic and len(topic.encode()) < 65_536


class Inbox:
    """Payloads that have come and are not read, each with whether it may have come before."""

    def __init__(self, messages: int = MESSAGES, size: int = BYTES) -> None:
        self._limits = messages, size
        self._waiting: deque[tuple[bytes, bool]] = deque()
        self._bytes = 0
        self._ready = threading.Condition()

    def put(self, payload: bytes, old: bool) -> bool:
        """Never waits; whether there was room."""
        messages, size = self._limits
        with self._ready:
            if len(self._waiting) >= messages or self._bytes + len(payload) > size:
                return False
            self._waiting.append((payload, old))
            self._bytes += len(payload)
            self._ready.notify()
            return True

    def get(self, timeout_s: float) -> tuple[bytes, bool] | None:
        """The oldest one; None where none comes."""
        with self._ready:
            if not self._ready.wait_for(lambda: self._waiting, timeout_s):
                return None
            payload, old = self._waiting.popleft()
            self._bytes -= len(payload)
            return payload, old


class Connection:
    """One connection with its subscription. `lost` is why it has ended."""

    def __init__(self, settings: MqttSettings, name: str, skip: Skip) -> None:
        """Retryable where the broker is not there or refuses."""
        self.inbox = Inbox()
        self.lost: str | None = None
        self._settings = settings
        self._skip = skip
        self._answered = threading.Event()
        self._client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=name,
            clean_session=False,
            reconnect_on_failure=False,
        )
        self._client.connect_timeout = ANSWER_S
        if settings.username is not None:
            self._client.username_pw_set(settings.username, settings.password)
        self._client.on_connect = self._on_connect
        self._client.on_subscribe = self._on_subscribe
        self._client.on_disconnect = self._on_disconnect
        self._client.on_message = self._on_message
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        settings = self._settings
        try:
            if settings.tls:
                self._client.tls_set(ca_certs=settings.cafile)
            self._client.connect(settings.host, settings.port, keepalive=KEEPALIVE_S)
        except (OSError, ValueError) as exc:
            raise Retryable(f"MQTT at {settings.address}: {exc}") from exc
        self._client.loop_start()
        if not self._answered.wait(ANSWER_S):
            self.lost = self.lost or f"no answer in {ANSWER_S:.0f} s"
        if self.lost is not None:
            raise Retryable(f"MQTT at {settings.address}: {self.lost}")

    def _on_connect(self, client: Any, _data: Any, _flags: Any, code: Any, _more: Any) -> None:
        if code.is_failure:
            user = self._settings.username
            who = "a client without a user" if user is None else f"the user {user!r}"
            self._end(
                f"it refuses {who} ({code}): look at TIDEWHEEL_MQTT_USERNAME and "
                "TIDEWHEEL_MQTT_PASSWORD"
            )
            return
        client.subscribe(self._settings.topic, qos=1)

    def _on_subscribe(
        self, _client: Any, _data: Any, _mid: Any, codes: list[Any], _more: Any
    ) -> None:
        if any(code.value >= REFUSED for code in codes):
            self._end(f"it refuses a subscription to {self._settings.topic}")
        else:
            log.info("MQTT at %s: subscribed to %s", self._settings.address, self._settings.topic)
        self._answered.set()

    def _on_disconnect(self, _client: Any, _data: Any, _flags: Any, code: Any, _more: Any) -> None:
        self._end(f"the connection was lost ({code})")

    def _end(self, why: str) -> None:
        self.lost = self.lost or why
        self._answered.set()

    def _on_message(self, _client: Any, _data: Any, message: Any) -> None:
        if not self.inbox.put(message.payload, message.dup or message.retain):
            self._skip(OVERFLOW, 0)

    def close(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._client.disconnect()
        self._client.loop_stop()


@dataclass
class MqttSource:
    """What is published, until `stop`. It can be iterated again, after an error: Retryable when
    the connection cannot be had or is lost."""

    settings: MqttSettings
    task: Task
    device: str
    stop: threading.Event
    skip: Skip

    def __post_init__(self) -> None:
        self._newest: deque[Reading] = deque(maxlen=MESSAGES)  # the last readings, of one time

    def __iter__(self) -> Iterator[Reading]:
        name = f"tidewheel-{self.task.name}-{self.device}"
        connection = Connection(self.settings, name, self.skip)
        try:
            for payload, old in self._payloads(connection):
                for reading in read_payload(self.task, payload, self.skip):
                    if old and self._has_come(reading):
                        self.skip(REPEATED, reading.time_us)
                        continue
                    if self._newest and self._newest[-1].time_us != reading.time_us:
                        self._newest.clear()
                    self._newest.append(reading)
                    yield reading
        finally:
            connection.close()

    def _has_come(self, reading: Reading) -> bool:
        older = self._newest and reading.time_us < self._newest[-1].time_us
        return bool(older) or reading in self._newest

    def _payloads(self, connection: Connection) -> Iterator[tuple[bytes, bool]]:
        while not self.stop.is_set():
            lost = connection.lost  # looked at first: what came before is read
            found = connection.inbox.get(0.0 if lost else LOOK_S)
            if found is not None:
                yield found
            elif lost:
                raise Retryable(f"MQTT at {self.settings.address}: {lost}")


def read_payload(task: Task, payload: bytes, skip: Skip) -> Iterator[Reading]:
    """The readings of one message; what is none is counted."""
    try:
        found = json.loads(payload)
    except UNREADABLE:
        skip(MALFORMED, 0)
        return
    for one in found if isinstance(found, list) else [found]:
        try:
            reading = json_reading(task, one)
        except UNREADABLE:
            skip(MALFORMED, 0)
            continue
        yield reading
