"""Settings of a controller."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from federation.controller.flwr_cli import ConfigValue, Submission
from federation.rollout.rollout import Plan
from streams.kafka.settings import BrokerSettings
from streams.runtime import option
from streams.runtime.health import HOST


@dataclass(frozen=True)
class ControllerSettings:
    """Settings of one controller. `run_config` overrides the app folder's settings of runs;
    `public_keys` are those whose models it announces, `signing_key` its own. `url`: where the
    registry's files are available besides Kafka."""

    task_ref: str
    broker: BrokerSettings
    state: Path
    registry: str | Path
    public_keys: tuple[Path, ...]
    signing_key: Path
    submission: Submission
    run_config: Mapping[str, ConfigValue] = field(default_factory=dict)
    plan: Plan = field(default_factory=Plan)
    url: str = ""
    min_devices: Annotated[int, option("Devices that a run needs.", ge=0)] = 2
    min_events: Annotated[int, option("Scored events before a run.", ge=0)] = 200
    min_interval_s: Annotated[
        float, option("Seconds between two runs.", name="--min-interval", ge=0)
    ] = 60.0
    schedule_s: Annotated[
        float | None, option("Seconds after which a run starts anyway.", name="--schedule", ge=0)
    ] = None
    runs_per_day: Annotated[
        int | None, option("Maximum of runs in 24 hours, except manual ones.", ge=0)
    ] = None
    mlflow: Annotated[
        str | None,
        option("Write runs to this MLflow tracking server, or folder.", metavar="URI"),
    ] = None
    metrics_port: int | None = None
    metrics_host: str = HOST

    @property
    def certificates(self) -> list[Path]:
        """The certificates of the state folder, and those with which Kafka is reached."""
        own = sorted((self.state / "keys" / "superlink").glob("*.pem"))
        named = (self.broker.cafile, self.broker.certfile)
        return own + [Path(name) for name in named if name]
