"""Arguments and environment variables that several commands share."""

import inspect
import json
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from msgspec import Meta

from compose.launcher.state_dir import StateDir
from streams.contract.decisions import DesiredState, Release
from streams.contract.errors import ArtifactError, MalformedRecord, UsageError
from streams.contract.task import DEVICE_NAME, STRATEGIES, Task, strategy_problem
from streams.kafka.settings import BrokerSettings
from streams.runtime.process import configure_logging
from streams.runtime.trust import load_public_key

log = logging.getLogger(__name__)

if TYPE_CHECKING:
    from federation.registry.registry import Registry
    from streams.worker.store.tables import Place

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
        help="Aggregation of updates: fedavg, fedprox, fedbuff, fedadam, fedyogi, "
        "median, trimmed-mean, krum, multi-krum, or an installed package's; default: the task's.",
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
        help="The CA certificate (PEM) to verify the SuperLink; default: no TLS.",
    ),
]
RegistryPlace = Annotated[
    str | None,
    typer.Option(
        "--registry",
        metavar="FOLDER|URL",
        envvar="TIDEWHEEL_REGISTRY",
        help="The store of models and decisions: a folder, or a URL that fsspec opens, as "
        "s3://bucket/prefix; default: <state>/registry.",
    ),
]
MetricsPort = Annotated[
    int | None,
    typer.Option(
        min=0,
        max=65_535,
        help="Serve /metrics (Prometheus), /ready and /live; 0: a free port.",
    ),
]
LOOPBACK = "127.0.0.1"
MetricsHost = Annotated[
    str,
    typer.Option(
        envvar="TIDEWHEEL_METRICS_HOST",
        help="The address for --metrics-port. They ask for no password: name another than loopback "
        "only on a network of your own.",
    ),
]
Rounds = Annotated[
    int | None, typer.Option(min=1, help="Rounds of a federated run; default: the task's.")
]
Partitions = Annotated[
    int,
    typer.Option(min=1, help="Partitions of a task's topics; all its commands need one number."),
]
StorePlace = Annotated[
    str | None,
    typer.Option(
        "--store",
        metavar="FOLDER|URL",
        envvar="TIDEWHEEL_STORE",
        help="The store of scored events: a folder, or a URL as s3://bucket/prefix, which workers "
        "on several machines can share; default: <state>/store.",
    ),
]
Reason = Annotated[str, typer.Option(help="The reason, for the history.")]
Device = Annotated[str, typer.Option(help="The device's name.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
DEFAULT_STATE = Path(".tidewheel")
SHARED: dict[str, Any] = {
    "task": TaskArgument, "state": State, "kafka": Kafka, "trust": Trust, "registry": RegistryPlace,
    "rounds": Rounds, "strategy": Strategy, "stages": Stages, "partitions": Partitions,
    "json": AsJson, "metrics_port": MetricsPort,
    "metrics_host": MetricsHost, "superlink_ca": SuperlinkCa, "reason": Reason,
}  # fmt: skip
LIMITS = {"ge": "min", "le": "max"}
ANNOUNCED = "a running controller announces it within 2 s"


def taking(
    run: Callable[..., Any],
    parameters: Iterable[inspect.Parameter],
    make: Callable[[dict[str, Any]], Any],
) -> Callable[..., Any]:
    """Return a command whose parameters are these and those of `run` behind its first one, for
    which it gets what `make` makes of their values."""
    keyword = inspect.Parameter.KEYWORD_ONLY
    _, *own = inspect.signature(run).parameters.values()
    named = {one.name: one.replace(kind=keyword) for one in [*parameters, *own]}

    def command(**given: Any) -> Any:
        others = {one.name: given.pop(one.name) for one in own if one.name in given}
        return run(make(given), **others)

    command.__signature__ = inspect.Signature(list(named.values()))  # type: ignore[attr-defined]
    command.__annotations__ = {name: one.annotation for name, one in named.items()}
    command.__doc__ = run.__doc__
    return command


def options_of(model: type) -> list[inspect.Parameter]:
    """Return the fields of a dataclass that are options as a command's parameters: shared ones, and
    those that are annotated as an option (streams.runtime.option)."""
    found = []
    for one in inspect.signature(model).parameters.values():
        for info in getattr(one.annotation, "__metadata__", ()):
            kind = one.annotation.__origin__
            found.append(one.replace(annotation=Annotated[kind, option_of(one.name, info)]))
        if one.name in SHARED:
            found.append(one.replace(annotation=SHARED[one.name]))
    return found


def option_of(name: str, about: Meta) -> Any:
    """Return the option of a field that is annotated as one."""
    extra = about.extra or {}
    bounds: dict[str, Any] = {to: extra.get(at) for at, to in LIMITS.items()}
    named = extra.get("name") or f"--{name.replace('_', '-')}"
    return typer.Option(named, metavar=extra.get("metavar"), help=about.description, **bounds)


def device_name(name: str) -> str:
    if not DEVICE_NAME.fullmatch(name):
        raise UsageError(f"--device {name!r}: letters, digits, '.', '_' and '-' only, at most 63")
    return name


def address(superlink: str) -> str:
    """Return `superlink` if it is HOST:PORT; raise UsageError otherwise."""
    host, _, port = superlink.rpartition(":")
    if not host or not port.isdigit():
        raise UsageError(f"--superlink {superlink}: write it as HOST:PORT")
    return superlink


def check_strategy(task: Task, strategy: str | None = None) -> None:
    """Raise UsageError unless the task supports `strategy`, by default its own, and what a package
    adds by that name is one."""
    if strategy is not None and (problem := strategy_problem(strategy, task.training)):
        raise UsageError(f"--strategy {strategy}: {problem}")
    chosen = strategy or task.training.strategy
    if chosen not in STRATEGIES:
        from federation.rounds.strategies import make

        make(chosen)


def broker_of(state: Path, kafka: str | None) -> BrokerSettings:
    """Return the cluster's settings, by default of the state folder's broker; raise UsageError if
    there is no such folder either."""
    ports = state / "broker" / "ports.json"
    named = kafka is not None or "TIDEWHEEL_KAFKA" in os.environ
    if not named and ports.exists():
        try:
            kafka = f"127.0.0.1:{int(json.loads(ports.read_bytes())['broker'])}"
        except (OSError, ValueError, KeyError, TypeError) as exc:
            raise UsageError(f"{ports} cannot be read ({exc}): use --kafka HOST:PORT") from exc
    settings = BrokerSettings.at(kafka)
    if not named and not state.is_dir():
        raise UsageError(
            f"the state folder {state} does not exist: check --state, or name a broker with "
            "--kafka HOST:PORT"
        )
    return settings


def trusted_keys(layout: StateDir, given: list[Path] | None) -> tuple[Path, ...]:
    """Return the given keys, or the current signing key and those that the local registry names,
    because served versions may have an older signature."""
    if given:
        return tuple(given)
    named = _named_keys(layout)
    others = [path for path in sorted(layout.keys.glob("*.pub")) if path.stem in named]
    return (layout.public_key, *others)


def store_of(state: Path, store: str | None) -> "Place":
    """Return the store at --store, or the state folder's."""
    from streams.worker.store.tables import place_of

    return place_of(store) if store else StateDir(state).store


def registry_of(
    task: Task, state: Path, place: str | None, trust: Sequence[Path] = ()
) -> "Registry":
    """Return the registry at --registry, or the state folder's, whose keys are trusted where no
    others are."""
    from federation.registry.registry import Registry

    layout = StateDir(state)
    keys = [load_public_key(path) for path in trust or layout.trusted_keys()]
    return Registry(place or layout.registry, task.name, task.version, keys)


def _named_keys(layout: StateDir) -> frozenset[str]:
    """Return the IDs of the keys that the local registry names and does not revoke; none without
    valid decisions."""
    from federation.registry.key_rotation import open_registry

    if not any((layout.registry / "history").glob("[0-9]*.json")):
        return frozenset()
    keys = [load_public_key(path) for path in layout.trusted_keys()]
    try:
        trust = open_registry(layout.registry, keys).trust()
    except (OSError, ArtifactError, MalformedRecord) as exc:
        log.warning("only the signing key is trusted, the local registry is not valid: %s", exc)
        return frozenset()
    return trust.named - trust.revoked


def served_model(layout: StateDir) -> Path | None:
    """Return the artifact that the local registry serves, if there is one."""
    stable = _standing(layout).stable
    path = layout.registry / "models" / f"{stable.model if stable else ''}.twa"
    return path if path.exists() else None


def _standing(layout: StateDir) -> DesiredState:
    """Return the desired state of the local registry, unverified; an empty one without
    decisions."""
    decided = sorted((layout.registry / "history").glob("[0-9]*.json"))
    try:
        return Release.decode(decided[-1].read_bytes()).decision.standing
    except (IndexError, OSError, MalformedRecord):
        return DesiredState()


def configure_log() -> None:
    level = os.environ.get("TIDEWHEEL_LOG_LEVEL", "INFO").upper()
    if level not in logging.getLevelNamesMapping():
        raise UsageError(f"TIDEWHEEL_LOG_LEVEL {level}: DEBUG, INFO, WARNING or ERROR")
    configure_logging(level)


def shares_of(text: str) -> tuple[float, ...]:
    """Return the shares of a rollout's stages: increasing, the last one 1."""
    try:
        shares = tuple(float(part) for part in text.split(","))
    except ValueError:
        shares = ()
    growing = all(a < b for a, b in pairwise((0.0, *shares)))
    if not shares or not growing or shares[-1] != 1:
        raise UsageError(f"--stages {text}: write increasing shares up to 1, as 0.05,0.25,1")
    return shares
