"""What several commands take from the command line and the environment, read in one place."""

import json
import logging
import os
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from pydantic import ValidationError

from compose.launcher.state_dir import StateDir
from streams.contract.decisions import DesiredState, Release
from streams.contract.errors import MalformedRecord, UsageError
from streams.contract.task import Task, strategy_problem
from streams.kafka.settings import BrokerSettings
from streams.runtime.key_files import load_public_key

if TYPE_CHECKING:
    from federation.registry.registry import Registry

TaskArgument = Annotated[
    str, typer.Argument(metavar="TASK", help="The task: path/to/file.py:task or module:task.")
]
State = Annotated[Path, typer.Option("--state", help="The state folder.", envvar="TIDEWHEEL_STATE")]
Kafka = Annotated[
    str | None,
    typer.Option(
        "--kafka",
        metavar="HOST:PORT",
        help="A Kafka cluster; also TIDEWHEEL_KAFKA. For TLS and SASL set "
        "TIDEWHEEL_KAFKA_SECURITY_PROTOCOL, _SASL_MECHANISM, _USERNAME, _PASSWORD, _CAFILE, "
        "_CERTFILE and _KEYFILE.",
    ),
]
Trust = Annotated[
    list[Path] | None,
    typer.Option("--trust", help="A public key to trust; default: <state>/keys/signing.pub."),
]
Strategy = Annotated[
    str | None,
    typer.Option(
        "--strategy",
        metavar="NAME",
        help="How updates become one model: fedavg, fedprox, fedbuff, fedadam, fedyogi, median, "
        "trimmed-mean, krum, multi-krum; default: the task's.",
    ),
]
Stages = Annotated[
    str,
    typer.Option(
        metavar="SHARES",
        help="Shares of the fleet that a candidate is offered to in turn, at least one device.",
    ),
]
STAGES = "0.05,0.25,1"
SuperlinkCa = Annotated[
    Path | None,
    typer.Option(
        "--superlink-ca",
        metavar="FILE",
        help="The CA certificate (PEM) to check the SuperLink by; default: plain text.",
    ),
]
RegistryPlace = Annotated[
    str | None,
    typer.Option(
        "--registry",
        metavar="FOLDER|URL",
        envvar="TIDEWHEEL_REGISTRY",
        help="Where models and decisions are kept: a folder, or what fsspec opens, as "
        "s3://bucket/prefix; default: <state>/registry.",
    ),
]
MetricsPort = Annotated[
    int | None,
    typer.Option(
        min=0,
        max=65_535,
        help="Serve /metrics (Prometheus), /ready and /live on 127.0.0.1; 0: a free port.",
    ),
]
Device = Annotated[str, typer.Option(help="The device's name.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
DEFAULT_STATE = Path(".tidewheel")


def device_name(name: str) -> str:
    from streams.contract.task import DEVICE_NAME

    if not DEVICE_NAME.fullmatch(name):
        raise UsageError(f"--device {name!r}: letters, digits, '.', '_' and '-' only, at most 63")
    return name


def address(superlink: str) -> str:
    """`superlink` where it is HOST:PORT."""
    host, _, port = superlink.rpartition(":")
    if not host or not port.isdigit():
        raise UsageError(f"--superlink {superlink}: write it as HOST:PORT")
    return superlink


def checked_strategy(task: Task, strategy: str) -> str:
    """`strategy` where the task can be trained so; UsageError says what is wrong."""
    if problem := strategy_problem(strategy, task.training):
        raise UsageError(f"--strategy {strategy}: {problem}")
    return strategy


def broker_from(kafka: str | None) -> BrokerSettings:
    """The cluster's settings from the environment, at `kafka` where that is given."""
    try:
        settings = BrokerSettings()  # type: ignore[call-arg]  # pydantic fills it from the alias
    except ValidationError as exc:
        first = exc.errors(include_url=False)[0]
        name = "_".join(str(part) for part in first["loc"]).upper()
        raise UsageError(f"TIDEWHEEL_KAFKA_{name}: {first['msg']}") from exc
    return settings.model_copy(update={"bootstrap": kafka}) if kafka else settings


def broker_of(state: Path, kafka: str | None) -> BrokerSettings:
    """As broker_from, but with the state folder's own broker where nothing else is named."""
    ports = state / "broker" / "ports.json"
    if kafka is None and "TIDEWHEEL_KAFKA" not in os.environ and ports.exists():
        try:
            kafka = f"127.0.0.1:{int(json.loads(ports.read_bytes())['broker'])}"
        except (OSError, ValueError, KeyError, TypeError) as exc:
            raise UsageError(f"{ports} cannot be read ({exc}): name the broker by --kafka") from exc
    return broker_from(kafka)


def trusted_keys(layout: StateDir, given: list[Path] | None) -> tuple[Path, ...]:
    """Those given, or the one in use and those that the registry beside names: what is served may
    be signed by the one before."""
    if given:
        return tuple(given)
    count = _standing(layout).keys
    others = [path for path in sorted(layout.keys.glob("*.pub")) if path.stem in count]
    return (layout.public_key, *others)


def registry_of(task: Task, state: Path, place: str | None) -> "Registry":
    """The registry at --registry, else the state folder's."""
    from federation.registry.registry import Registry

    layout = StateDir(state)
    keys = [load_public_key(path) for path in layout.trusted_keys()]
    return Registry(place or layout.registry, task.name, task.version, keys)


def served_model(layout: StateDir) -> Path | None:
    """The artifact that the registry beside this device serves, where there is one."""
    stable = _standing(layout).stable
    path = layout.registry / "models" / f"{stable.model if stable else ''}.twa"
    return path if path.exists() else None


def _standing(layout: StateDir) -> DesiredState:
    """What the registry's last decision says of itself; nothing where there is none."""
    decided = sorted((layout.registry / "history").glob("[0-9]*.json"))
    try:
        return Release.decode(decided[-1].read_bytes()).decision.standing
    except (IndexError, OSError, MalformedRecord):
        return DesiredState()


def configure_log() -> None:
    level = os.environ.get("TIDEWHEEL_LOG_LEVEL", "INFO").upper()
    if level not in logging.getLevelNamesMapping():
        raise UsageError(f"TIDEWHEEL_LOG_LEVEL {level}: DEBUG, INFO, WARNING or ERROR")
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")


def shares_of(text: str) -> tuple[float, ...]:
    """The shares of a rollout's stages, each above the one before, the last 1."""
    try:
        shares = tuple(float(part) for part in text.split(","))
    except ValueError:
        shares = ()
    growing = all(a < b for a, b in pairwise((0.0, *shares)))
    if not shares or not growing or shares[-1] != 1:
        raise UsageError(f"--stages {text}: write growing shares that end with 1, as 0.05,0.25,1")
    return shares
