"""Settings of a device's agent."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from edge_client.spool.limits import SpoolLimits
from streams.kafka.settings import BrokerSettings

if TYPE_CHECKING:
    from edge_client.sources.mqtt import MqttSettings  # needs paho-mqtt, an optional package


@dataclass(frozen=True)
class EdgeSettings:
    """Settings of one device.

    folder: the device's folder; model: an artifact file for a device without a model; speed: of a
    replay, 1 is real time, 0 as fast as possible; passes: end a replay after so many passes;
    stay: go on without readings when the source has ended;
    drain_s: limit of the final sending; source: the task's iterator, lines of standard input, or
    the MQTT broker `mqtt`; heartbeat_s: between two states where nothing has changed;
    gather_s: how long an event may wait for more in its message;
    superlink_ca, node_key: how the device joins the SuperLink of a run, None for plain text and no
    key; uplink_bytes_per_s: rate limit; metered: the share of events that are sent, 0 to 1; spool:
    its limits; metrics_port: on loopback, 0 for a free one.
    """

    task_ref: str
    device: str
    folder: Path
    broker: BrokerSettings
    trusted: tuple[Path, ...]
    model: Path | None = None
    speed: float = 1.0
    passes: int | None = None
    stay: bool = False
    drain_s: float = 10.0
    spool: SpoolLimits = field(default_factory=SpoolLimits)
    heartbeat_s: float = 10.0
    gather_s: float = 0.0
    uplink_bytes_per_s: int | None = None
    metered: float = 1.0
    source: Literal["task", "stdin", "mqtt"] = "task"
    mqtt: "MqttSettings | None" = None
    superlink_ca: Path | None = None
    node_key: Path | None = None
    minimum_battery: float = 0.3
    maximum_celsius: float = 80.0
    metrics_port: int | None = None
    metrics_host: str = "127.0.0.1"
