"""Administration: create and check topics, probe a broker, read a group's offsets."""

import contextlib
import logging
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from kafka import KafkaAdminClient, TopicPartition
from kafka import errors as kafka_errors
from kafka.admin import ConfigResource, ConfigResourceType, OffsetSpec

from streams.contract.errors import UsageError
from streams.contract.topics import KEPT_MS, TopicSpec
from streams.kafka.refusals import absent, connecting, translated
from streams.kafka.settings import BrokerSettings

MOST_COPIES = 3
PAUSE_S = 0.1  # between two requests to a group coordinator that is not available yet

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class GroupPosition:
    """A partition's first and end offset, a group's committed offset (None if it has none), and the
    topic's ID (None where the broker has none)."""

    partition: int
    begin: int
    end: int
    committed: int | None
    topic_id: str | None = None


@dataclass(frozen=True)
class GroupState:
    """A group's place in a topic; members: its processes; keeps_s: after how long the topic deletes
    a message, None for never. Both are None if the broker does not tell."""

    positions: list[GroupPosition]
    members: int | None
    keeps_s: float | None


def probe(settings: BrokerSettings, timeout_s: float = 2.0) -> bool:
    """Return whether a broker answers a metadata request within `timeout_s`."""
    timeout_ms = int(timeout_s * 1000)
    try:
        admin = KafkaAdminClient(**settings.client_options(), bootstrap_timeout_ms=timeout_ms)
        with contextlib.closing(admin):
            admin.list_topics()
    except (kafka_errors.KafkaError, OSError):
        return False
    return True


@contextlib.contextmanager
def _connected(settings: BrokerSettings, **options: int) -> Iterator[KafkaAdminClient]:
    with connecting(settings):
        admin = KafkaAdminClient(**settings.client_options(), **options)
    with translated(settings), contextlib.closing(admin):
        yield admin


def ensure_topics(settings: BrokerSettings, specs: Iterable[TopicSpec]) -> None:
    """Create missing topics; raise UsageError if an existing one has other partitions or settings
    than it needs, and warn of one that deletes messages earlier than a new one. Settings that the
    broker does not report are not checked: it may be too old, or its ACLs may forbid it."""
    wanted = {spec.name: spec for spec in specs}
    with _connected(settings, bootstrap_timeout_ms=10_000) as admin:
        missing = set(wanted) - set(admin.list_topics())
        if new := [wanted[name] for name in sorted(missing)]:
            _create(admin, settings, new, _copies(admin, settings))
        if there := [wanted[name] for name in sorted(set(wanted) - missing)]:
            _check_partitions(admin, settings, there)
            _check_configs(admin, settings, there)


def _check_partitions(
    admin: KafkaAdminClient, settings: BrokerSettings, specs: Sequence[TopicSpec]
) -> None:
    wanted = {spec.name: spec.partitions for spec in specs}
    for described in admin.describe_topics(list(wanted)):
        have, want = len(described["partitions"]), wanted[described["name"]]
        if have != want:
            raise UsageError(
                f"topic {described['name']} on {settings.bootstrap} has {have} partitions, "
                f"this task needs {want}: "
                + (f"use --partitions {have}, or " if want > 1 else "")
                + "use another cluster, or delete the topic, with what it has, if it was made by "
                "mistake"
            )


def _check_configs(
    admin: KafkaAdminClient, settings: BrokerSettings, specs: Sequence[TopicSpec]
) -> None:
    asked = [
        ConfigResource(ConfigResourceType.TOPIC, spec.name, list(spec.required | spec.limits))
        for spec in specs
    ]
    try:
        reported = admin.describe_configs(asked, config_filter="all").get("topic", {})
    except kafka_errors.UnsupportedVersionError:
        return
    for spec in specs:
        found = {name: config["value"] for name, config in reported.get(spec.name, {}).items()}
        have = {name: value for name, value in found.items() if value is not None}
        wrong = {n: v for n, v in spec.required.items() if have.get(n, v) != v}
        if wrong:
            raise UsageError(
                f"{_has(settings, spec, have, wrong)}, this task needs {_joined(wrong)}: "
                f"{_altering(settings, spec, wrong)}, or use another cluster"
            )
        less = {n: v for n, v in spec.limits.items() if _is_less(have.get(n, v), v)}
        if less:
            log.warning(
                "%s, a new one has %s: it deletes messages earlier, and a worker or another reader "
                "that is further behind loses them; to keep them, %s",
                _has(settings, spec, have, less), _joined(less), _altering(settings, spec, less),
            )  # fmt: skip


def _is_less(have: str, wanted: str) -> bool:
    """Return whether a topic keeps less by a limit, where -1 is none, or by another timestamp."""
    if not wanted.lstrip("-").isdigit():
        return have != wanted
    kept, usual = (math.inf if int(each) < 0 else int(each) for each in (have, wanted))
    return kept < usual


def _has(
    settings: BrokerSettings, spec: TopicSpec, have: Mapping[str, str], names: Iterable[str]
) -> str:
    values = _joined({name: have[name] for name in names})
    return f"topic {spec.name} on {settings.bootstrap} has {values}"


def _joined(configs: Mapping[str, str], by: str = " and ") -> str:
    return by.join(f"{name}={value}" for name, value in configs.items())


def _altering(settings: BrokerSettings, spec: TopicSpec, configs: Mapping[str, str]) -> str:
    return (
        f"kafka-configs.sh --bootstrap-server {settings.bootstrap} --alter --topic {spec.name} "
        f"--add-config {_joined(configs, ',')}"
    )


@dataclass(frozen=True)
class Copies:
    """Of each partition, and how many of them must have a message before it is acknowledged; None
    for the cluster's default."""

    replication: int | None = None
    min_insync: int | None = None


def _copies(admin: KafkaAdminClient, settings: BrokerSettings) -> Copies:
    """Return what the settings say, by default three copies where the cluster has three brokers,
    and one less in sync, so that a broker may fail."""
    try:
        brokers = len(admin.describe_cluster()["brokers"])
    except (KeyError, kafka_errors.UnsupportedVersionError):  # an old broker
        return Copies(settings.replication, settings.min_insync)
    replication = settings.replication or min(MOST_COPIES, brokers)
    if replication > brokers:
        raise UsageError(
            f"{settings.bootstrap} has {brokers} brokers, too few for {replication} copies of a "
            "topic: lower TIDEWHEEL_KAFKA_REPLICATION"
        )
    min_insync = settings.min_insync or max(1, replication - 1)
    if min_insync > replication:
        raise UsageError(
            f"TIDEWHEEL_KAFKA_MIN_INSYNC={min_insync} is more than the {replication} copies of a "
            "topic"
        )
    return Copies(replication, min_insync)


def _create(
    admin: KafkaAdminClient, settings: BrokerSettings, specs: Sequence[TopicSpec], copies: Copies
) -> None:
    """Create topics by one request."""
    more = {} if copies.min_insync is None else {"min.insync.replicas": str(copies.min_insync)}
    options = {
        spec.name: {
            "num_partitions": spec.partitions,
            "replication_factor": copies.replication or -1,
            "configs": {**spec.configs, **more},
        }
        for spec in specs
    }
    for made in admin.create_topics(options, raise_errors=False)["topics"]:
        error = kafka_errors.for_code(made["error_code"])
        if error in (kafka_errors.NoError, kafka_errors.TopicAlreadyExistsError):
            continue  # created, or by another at the same time
        if error is kafka_errors.InvalidReplicationFactorError:
            raise UsageError(
                f"{settings.bootstrap} cannot keep {copies.replication} copies of {made['name']} "
                "now: start its other brokers, or lower TIDEWHEEL_KAFKA_REPLICATION"
            )
        raise error(f"{made['name']}: {made['error_message']}")


def group_state(
    settings: BrokerSettings, group: str, topic: str, timeout_s: float = 3.0
) -> GroupState:
    """Return the offsets of `group` in each partition of `topic`, and what the broker says of
    both."""
    with _waiting(settings, timeout_s) as admin:
        positions = _positions(settings, admin, group, topic, timeout_s)
        return GroupState(positions, _members(admin, group), _retention_s(admin, topic))


def _members(admin: KafkaAdminClient, group: str) -> int | None:
    try:
        found = admin.describe_groups([group])[group]
    except kafka_errors.UnsupportedVersionError:
        return None
    return len(found["members"]) if found["group_state"] else None  # "Dead" where there is none


def _retention_s(admin: KafkaAdminClient, topic: str) -> float | None:
    asked = ConfigResource(ConfigResourceType.TOPIC, topic, [KEPT_MS])
    try:
        reported = admin.describe_configs([asked], config_filter="all").get("topic", {})
    except kafka_errors.UnsupportedVersionError:
        return None
    value = reported.get(topic, {}).get(KEPT_MS, {}).get("value")
    return None if value is None or int(value) < 0 else int(value) / 1000


def made_again(topic: str, at: GroupPosition) -> str:
    """Return what it means that a group has committed an offset beyond a partition's end."""
    return (
        f"{topic}-{at.partition} ends at {at.end}, and {at.committed} is committed: the topic was "
        "deleted and made again, or the broker has lost messages"
    )


def group_positions(
    settings: BrokerSettings, group: str, topic: str, timeout_s: float = 3.0
) -> list[GroupPosition]:
    """Return the offsets of `group` in each partition of `topic`.

    A group that was never used has no offsets. The first request makes the broker create its
    internal offsets topic, so this waits up to `timeout_s` for the group coordinator.
    """
    with _waiting(settings, timeout_s) as admin:
        return _positions(settings, admin, group, topic, timeout_s)


def _waiting(
    settings: BrokerSettings, timeout_s: float
) -> AbstractContextManager[KafkaAdminClient]:
    timeout_ms = int(timeout_s * 1000)
    options = {"bootstrap_timeout_ms": timeout_ms, "request_timeout_ms": timeout_ms}
    return _connected(settings, **options)


def _positions(
    settings: BrokerSettings, admin: KafkaAdminClient, group: str, topic: str, timeout_s: float
) -> list[GroupPosition]:
    deadline = time.monotonic() + timeout_s
    described = admin.describe_topics([topic])[0]
    if not described["partitions"]:
        raise absent(settings, topic)
    found = sorted(p["partition_index"] for p in described["partitions"])
    asked = [TopicPartition(topic, partition) for partition in found]
    committed = _committed(admin, group, asked, deadline)  # first, so it is never past the end
    begins = admin.list_partition_offsets(dict.fromkeys(asked, OffsetSpec.EARLIEST))
    ends = admin.list_partition_offsets(dict.fromkeys(asked, OffsetSpec.LATEST))
    topic_id = described.get("topic_id") and str(described["topic_id"])
    return [
        GroupPosition(tp.partition, begins[tp].offset, ends[tp].offset, committed.get(tp), topic_id)
        for tp in asked
    ]


def _committed(
    admin: KafkaAdminClient, group: str, asked: list[TopicPartition], deadline: float
) -> dict[TopicPartition, int]:
    while True:
        try:
            found = admin.list_group_offsets({group: asked})[group]
            return {tp: entry.offset for tp, entry in found.items() if entry.offset >= 0}
        except kafka_errors.GroupIdNotFoundError:
            return {}
        except (
            kafka_errors.CoordinatorNotAvailableError,
            kafka_errors.CoordinatorLoadInProgressError,
            kafka_errors.NotCoordinatorError,
        ):
            if time.monotonic() > deadline:
                raise
            time.sleep(PAUSE_S)
