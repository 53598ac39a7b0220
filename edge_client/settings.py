"""Settings of a device's agent."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from edge_client.spool.frames import SpoolLimits
from streams.kafka.settings import BrokerSettings
from streams.runtime import option

if TYPE_CHECKING:
    from edge_client.sources.mqtt import MqttSettings  # needs paho-mqtt, an optional package


@dataclass(frozen=True)
class EdgeSettings:
    """Settings of one device.

    folder: the device's folder; model: an artifact file for a device without a model; source: the
    task's iterator, lines of standard input, or the MQTT broker `mqtt`; heartbeat_s: between two
    states where nothing has changed; superlink_ca: of the SuperLink of a run, None for plain text;
    uplink_bytes_per_s: rate limit; spool: its limits; metrics_port: on loopback, 0 for a free one.
    """

    task_ref: str
    device: str
    folder: Path
    broker: BrokerSettings
    trusted: tuple[Path, ...]
    model: Path | None = None
    speed: Annotated[
        float, option("Replay speed: 1 is real time, 0 as fast as possible.", ge=0)
    ] = 1.0
    passes: Annotated[int | None, option("Passes through the data; default: endless.", ge=1)] = None
    stay: Annotated[bool, option("Continue after the readings have ended, without any.")] = False
    drain_s: Annotated[
        float, option("Seconds to send pending events at the end.", name="--drain", ge=0)
    ] = 10.0
    spool: SpoolLimits = field(default_factory=SpoolLimits)
    heartbeat_s: float = 10.0
    uplink_bytes_per_s: int | None = None
    metered: Annotated[
        float,
        option(
            "On a metered line: send this share of the events, a random sample, and drop the "
            "others; runs invite other devices first.",
            "SHARE",
            ge=0,
            le=1,
        ),
    ] = 1.0
    source: Literal["task", "stdin", "mqtt"] = "task"
    mqtt: "MqttSettings | None" = None
    superlink_ca: Path | None = None
    node_key: Annotated[
        Path | None, option("The device's private key for the SuperLink; default: none.", "FILE")
    ] = None
    superlink: Annotated[
        str | None,
        option(
            "A SuperLink to stay connected to, for runs that cannot invite the device over Kafka; "
            "default: none.",
            "HOST:PORT",
        ),
    ] = None
    minimum_battery: float = 0.3
    maximum_celsius: Annotated[
        float, option("Degrees Celsius above which it does not train.", name="--max-temperature")
    ] = 80.0
    metrics_port: int | None = None
    metrics_host: str = "127.0.0.1"
