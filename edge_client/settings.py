"""Settings of a device's agent."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from edge_client.spool.limits import SpoolLimits
from edge_client.spool.sampling import Sampling
from streams.kafka.settings import BrokerSettings

if TYPE_CHECKING:
    from edge_client.sources.mqtt import MqttSettings  # needs paho-mqtt, an optional package


@dataclass(frozen=True)
class EdgeSettings:
    """`folder` is the device's own; `model` an artifact file for a device that has none yet.

    `speed` paces a replay: 1 is real time, 0 as fast as it goes. `passes` ends it after so many
    rounds through the data. `drain_s` bounds the stop. `source` is where readings come from: the
    task's own iterator, lines of standard input (sources.py), or the broker `mqtt` (mqtt.py).
    `uplink_bytes_per_s` bounds what is sent (uplink.py), `metering` says what of the events is
    (metering.py). `spool` bounds what waits (limits.py); what the metering calls uncertain is kept
    longest.
    (metering.py). `metrics_port` is on loopback, 0 for a free one.
    """

    task_ref: str
    device: str
    folder: Path
    broker: BrokerSettings
    trusted: tuple[Path, ...]
    model: Path | None = None
    speed: float = 1.0
    passes: int | None = None
    drain_s: float = 10.0
    spool: SpoolLimits = field(default_factory=SpoolLimits)
    uplink_bytes_per_s: int | None = None
    sampling: Sampling = field(default_factory=Sampling)
    source: Literal["task", "stdin", "mqtt"] = "task"
    mqtt: "MqttSettings | None" = None
    minimum_battery: float = 0.3
    maximum_celsius: float = 80.0
    metrics_port: int | None = None
