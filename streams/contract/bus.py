"""The one seam to Kafka for every process but the worker: kafka-python behind a few small things.

`Producer` sends and reports each delivery, `Reader` follows whole topics without a group,
`ensure_topics` creates what is missing, `probe` says whether a broker answers, `group_positions`
where a group is in a topic. The library's errors become BrokerUnavailable here.
"""

import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka import errors as kafka_errors
from kafka.admin import ConfigResource, ConfigResourceType, OffsetSpec
from kafka.partitioner.default import murmur2
from pydantic import Field, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from streams.contract import refusals
from streams.contract.errors import BrokerUnavailable, UsageError
from streams.contract.records import Headers
from streams.contract.topics import TopicSpec

# The library logs each failed connection attempt; what matters comes back as an error or a metric.
logging.getLogger("kafka").setLevel(logging.CRITICAL)
_refusals = refusals.listen()

ASK_MS, PAUSE_S = 5, 0.1  # of a Reader that waits for messages


class BrokerSettings(BaseSettings):
    """Where Kafka is and how to speak to it. `bootstrap` (HOST:PORT, comma separated) is read from
    TIDEWHEEL_KAFKA, every other field from TIDEWHEEL_KAFKA_<FIELD>."""

    model_config = SettingsConfigDict(
        env_prefix="TIDEWHEEL_KAFKA_",
        frozen=True,
        validate_by_name=True,
        validate_by_alias=True,
        validate_default=True,  # a user is missing where the protocol needs one
    )

    bootstrap: str = Field("127.0.0.1:9092", validation_alias="TIDEWHEEL_KAFKA")
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] | None = None
    username: str | None = None
    password: str | None = None
    cafile: str | None = None
    certfile: str | None = None
    keyfile: str | None = None

    @field_validator("username", "password")
    @classmethod
    def _given_for_sasl(cls, value: str | None, info: ValidationInfo) -> str | None:
        protocol = str(info.data.get("security_protocol"))
        if protocol.startswith("SASL") and not value:
            raise ValueError(f"is needed for {protocol}")
        return value

    @field_validator("cafile", "certfile", "keyfile")
    @classmethod
    def _can_be_read(cls, value: str | None) -> str | None:
        if value is not None and not os.access(value, os.R_OK):
            raise ValueError(f"{value} is no file that can be read")
        return value

    @property
    def sasl(self) -> bool:
        return self.security_protocol.startswith("SASL")

    def client_options(self) -> dict[str, Any]:
        """The settings as kafka-python's keyword arguments."""
        options = {
            "bootstrap_servers": self.bootstrap,
            "security_protocol": self.security_protocol,
            "sasl_mechanism": self.sasl_mechanism or ("PLAIN" if self.sasl else None),
            "sasl_plain_username": self.username,
            "sasl_plain_password": self.password,
            "ssl_cafile": self.cafile,
            "ssl_certfile": self.certfile,
            "ssl_keyfile": self.keyfile,
        }
        return {name: value for name, value in options.items() if value is not None}


@dataclass(frozen=True)
class Received:
    """One message as a Reader gives it; `time_ms` is its timestamp, by its producer's clock."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: Headers
    time_ms: int = 0


@dataclass(frozen=True)
class GroupPosition:
    """The offsets that a partition has, and the next one that a group is to be given: None where
    it has committed nothing."""

    partition: int
    begin: int
    end: int
    committed: int | None


class Sender(Protocol):
    """What the uplink needs of a producer; fakes implement it."""

    def send(
        self,
        topic: str,
        key: bytes,
        value: bytes,
        headers: Headers,
        done: Callable[[Exception | None], None],
    ) -> None:
        """Hand over a message; `done` is called once, by another thread, with None or an error."""
        ...

    def close(self, timeout_s: float) -> None: ...


class Producer:
    """An idempotent kafka-python producer, set up to survive outages.

    `delivery_timeout_ms` never runs out: an idempotent producer of this library whose batch expires
    sends nothing ever again. Bounding what is in flight is the caller's part.
    """

    OPTIONS: ClassVar[dict[str, Any]] = {
        "acks": "all",
        "enable_idempotence": True,
        "compression_type": "zstd",
        "linger_ms": 5,
        "max_request_size": 4_000_000,
        "delivery_timeout_ms": 2**31 - 1,
        "max_block_ms": 2000,
        "reconnect_backoff_max_ms": 2000,
        "allow_auto_create_topics": False,
    }

    def __init__(self, settings: BrokerSettings, *, bootstrap_timeout_s: float = 5.0) -> None:
        with _connecting(settings):
            self._producer = KafkaProducer(
                **settings.client_options(),
                **self.OPTIONS,
                bootstrap_timeout_ms=int(bootstrap_timeout_s * 1000),
            )
        self._settings = settings

    def send(
        self,
        topic: str,
        key: bytes,
        value: bytes,
        headers: Headers,
        done: Callable[[Exception | None], None],
    ) -> None:
        try:
            future = self._producer.send(topic, value=value, key=key, headers=headers)
        except kafka_errors.KafkaError as exc:
            raise unavailable(self._settings, exc) from exc
        future.add_callback(lambda _metadata: done(None))
        future.add_errback(done)

    def put(
        self,
        topic: str,
        key: bytes | None,
        value: bytes,
        headers: Headers | None = None,
        timeout_s: float = 10.0,
    ) -> int:
        """Send one message and wait until it is safe; return its offset."""
        try:
            future = self._producer.send(topic, value=value, key=key, headers=headers or [])
            return int(future.get(timeout=timeout_s).offset)
        except kafka_errors.KafkaError as exc:
            raise unavailable(self._settings, exc) from exc

    def close(self, timeout_s: float = 2.0) -> None:
        try:
            self._producer.close(timeout=timeout_s)
        except kafka_errors.KafkaError as exc:
            raise unavailable(self._settings, exc) from exc


class Reader:
    """Follows some topics from their beginning or end, outside any group: all partitions, or with
    `key` those where the default partitioner puts that key."""

    def __init__(
        self,
        settings: BrokerSettings,
        topics: Sequence[str],
        *,
        key: str | None = None,
        from_beginning: bool = True,
        timeout_s: float = 10.0,
    ) -> None:
        self._settings = settings
        with _connecting(settings):
            self._consumer = KafkaConsumer(
                **settings.client_options(),
                enable_auto_commit=False,
                allow_auto_create_topics=False,
                auto_offset_reset="earliest",
                reconnect_backoff_max_ms=2000,
                fetch_max_wait_ms=500,
                request_timeout_ms=10_000,
                bootstrap_timeout_ms=int(timeout_s * 1000),
            )
        try:
            self._assign(topics, key, from_beginning, time.monotonic() + timeout_s)
        except BaseException:
            self._consumer.close(timeout_ms=500)
            raise

    def _assign(
        self, topics: Sequence[str], key: str | None, from_beginning: bool, deadline: float
    ) -> None:
        found: list[TopicPartition] = []
        for topic in topics:
            while not (partitions := self._partitions(topic)):
                if time.monotonic() > deadline:
                    raise absent(self._settings, topic)
                time.sleep(0.1)
            wanted = sorted(partitions)
            if key is not None:
                wanted = [partition_of(key, len(wanted))]
            found += [TopicPartition(topic, p) for p in wanted]
        try:
            self._consumer.assign(found)
            if from_beginning:
                self._consumer.seek_to_beginning(*found)
            else:
                self._consumer.seek_to_end(*found)
        except kafka_errors.KafkaError as exc:
            raise unavailable(self._settings, exc) from exc

    def _partitions(self, topic: str) -> set[int] | None:
        try:
            return self._consumer.partitions_for_topic(topic)  # type: ignore[no-any-return]
        except kafka_errors.KafkaError as exc:
            raise unavailable(self._settings, exc) from exc

    def poll(self, timeout_s: float = 0.5, limit: int = 500) -> list[Received]:
        """The next messages, at most `limit`; an empty list when none came within `timeout_s`.

        The library asks again at once when a fetch comes back empty. Kafka holds such a fetch for
        `fetch_max_wait_ms`, the embedded broker does not: without pauses a reader would spin.
        """
        deadline = time.monotonic() + timeout_s
        try:
            while not (polled := self._consumer.poll(timeout_ms=ASK_MS, max_records=limit)):
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    break
                time.sleep(min(PAUSE_S, left_s))
        except kafka_errors.KafkaError as exc:
            raise unavailable(self._settings, exc) from exc
        return [
            Received(tp.topic, tp.partition, r.offset, r.key, r.value, list(r.headers), r.timestamp)
            for tp, records in polled.items()
            for r in records
        ]

    def partitions(self, topic: str) -> list[int]:
        """The partitions of `topic` that this reader follows."""
        return sorted(tp.partition for tp in self._consumer.assignment() if tp.topic == topic)

    def seek(self, topic: str, partition: int, offset: int) -> None:
        self._consumer.seek(TopicPartition(topic, partition), offset)

    def seek_back(self, time_ms: int) -> None:
        """Begin with the first messages that are not older, wall-clock milliseconds."""
        try:
            asked = dict.fromkeys(self._consumer.assignment(), time_ms)
            for tp, found in self._consumer.offsets_for_times(asked).items():
                if found is not None:
                    self._consumer.seek(tp, found.offset)
        except kafka_errors.KafkaError as exc:
            raise unavailable(self._settings, exc) from exc

    def position(self, topic: str, partition: int) -> int:
        """The offset of the next message."""
        try:
            return int(self._consumer.position(TopicPartition(topic, partition), timeout_ms=5000))
        except kafka_errors.KafkaError as exc:
            raise unavailable(self._settings, exc) from exc

    def end(self, topic: str, partition: int) -> int:
        """The offset that the next message of all will have."""
        try:
            tp = TopicPartition(topic, partition)
            return int(self._consumer.end_offsets([tp])[tp])
        except kafka_errors.KafkaError as exc:
            raise unavailable(self._settings, exc) from exc

    def read_to_end(self, timeout_s: float = 15.0) -> list[Received]:
        """Everything up to the end that the topics have now."""
        deadline = time.monotonic() + timeout_s
        try:
            ends = self._consumer.end_offsets(list(self._consumer.assignment()))
            found: list[Received] = []
            while any(
                self._consumer.position(tp, timeout_ms=5000) < end for tp, end in ends.items()
            ):
                if time.monotonic() > deadline:
                    raise BrokerUnavailable(
                        f"{self._settings.bootstrap} did not give all messages in {timeout_s:.0f} s"
                    )
                found += self.poll(0.2)
        except kafka_errors.KafkaError as exc:
            raise unavailable(self._settings, exc) from exc
        return found

    def read_back(self, timeout_s: float = 5.0, step: int = 16) -> Iterator[list[Received]]:
        """What the topics have now, from their ends backwards: of each partition the last `step`
        messages, then those before them, until all are told or `timeout_s` is over."""
        deadline = time.monotonic() + timeout_s
        try:
            followed = list(self._consumer.assignment())
            begins = self._consumer.beginning_offsets(followed)
            ends = self._consumer.end_offsets(followed)
            while before := {tp: end for tp, end in ends.items() if end > begins[tp]}:
                starts = {tp: max(begins[tp], end - step) for tp, end in before.items()}
                found = self._between(starts, before, deadline)
                if found is None:
                    return
                yield found
                ends = starts
        except kafka_errors.KafkaError as exc:
            raise unavailable(self._settings, exc) from exc

    def _between(
        self,
        starts: dict[TopicPartition, int],
        ends: dict[TopicPartition, int],
        deadline: float,
    ) -> list[Received] | None:
        """The messages from `starts` to before `ends`; None where they did not come in time."""
        self._consumer.pause(*self._consumer.assignment())
        self._consumer.resume(*ends)
        for tp, start in starts.items():
            self._consumer.seek(tp, start)
        found: list[Received] = []
        while any(self._consumer.position(tp, timeout_ms=5000) < end for tp, end in ends.items()):
            if time.monotonic() > deadline:
                return None
            polled = self.poll(0.2)
            found += [m for m in polled if m.offset < ends[TopicPartition(m.topic, m.partition)]]
        return found

    def close(self) -> None:
        self._consumer.close(timeout_ms=1000)


@contextlib.contextmanager
def _connecting(settings: BrokerSettings) -> Iterator[None]:
    """A client is made: what fails is told with the reason, where the broker gave one."""
    began = time.monotonic()
    try:
        yield
    except (kafka_errors.KafkaError, OSError) as exc:
        if why := _refusals.since(began) or refusals.explain(exc):
            raise BrokerUnavailable(f"Kafka at {settings.bootstrap}: {why}") from exc
        raise unavailable(settings, exc) from exc


def unavailable(settings: BrokerSettings, exc: Exception) -> BrokerUnavailable:
    """A library error as one line for a person. What the broker refuses is told as that: it may
    be allowed later, so it is tried again all the same."""
    refusals = (
        kafka_errors.AuthorizationError,
        kafka_errors.SaslAuthenticationFailedError,
        kafka_errors.MessageSizeTooLargeError,
    )
    if isinstance(exc, refusals):
        return BrokerUnavailable(
            f"Kafka at {settings.bootstrap} refuses: {type(exc).__name__}: {exc}: "
            "check user, password and ACLs (TIDEWHEEL_KAFKA_*), or the brokers' message size"
        )
    return BrokerUnavailable(
        f"no Kafka broker answers at {settings.bootstrap} ({type(exc).__name__}): "
        "start one, or name another with --kafka HOST:PORT"
    )


def absent(settings: BrokerSettings, topic: str) -> BrokerUnavailable:
    """A topic that is missing, as one line for a person."""
    return BrokerUnavailable(
        f"topic {topic} is not on {settings.bootstrap}: "
        "start `tidewheel worker` or `tidewheel up`, which create it"
    )


def partition_of(key: str, partitions: int) -> int:
    """The partition that Kafka's default partitioner (murmur2) gives a key."""
    return (int(murmur2(key.encode())) & 0x7FFFFFFF) % partitions


def probe(settings: BrokerSettings, timeout_s: float = 2.0) -> bool:
    """Whether a broker answers a metadata request within `timeout_s`."""
    try:
        admin = KafkaAdminClient(
            **settings.client_options(), bootstrap_timeout_ms=int(timeout_s * 1000)
        )
    except (kafka_errors.KafkaError, OSError):
        return False
    try:
        admin.list_topics()
    except (kafka_errors.KafkaError, OSError):
        return False
    finally:
        admin.close()
    return True


def ensure_topics(settings: BrokerSettings, specs: Iterable[TopicSpec]) -> None:
    """Create the topics that are missing; one that exists with another number of partitions,
    cleanup policy or retention is an error. Settings that the broker does not tell (it is too old,
    or may not by its ACLs) are passed over."""
    wanted = {spec.name: spec for spec in specs}
    with _connecting(settings):
        admin = KafkaAdminClient(**settings.client_options(), bootstrap_timeout_ms=10_000)
    try:
        missing = set(wanted) - set(admin.list_topics())
        for name in sorted(missing):
            _create(admin, wanted[name])
        if there := [wanted[name] for name in sorted(set(wanted) - missing)]:
            _check_partitions(admin, settings, there)
            _check_configs(admin, settings, there)
    except kafka_errors.KafkaError as exc:
        raise unavailable(settings, exc) from exc
    finally:
        admin.close()


def _check_partitions(
    admin: KafkaAdminClient, settings: BrokerSettings, specs: Sequence[TopicSpec]
) -> None:
    wanted = {spec.name: spec.partitions for spec in specs}
    for described in admin.describe_topics(list(wanted)):
        have, want = len(described["partitions"]), wanted[described["name"]]
        if have != want:
            raise UsageError(
                f"topic {described['name']} on {settings.bootstrap} has {have} partitions, "
                f"this task asks for {want}: "
                + (f"say --partitions {have}, or " if want > 1 else "")
                + "use another cluster"
            )


def _check_configs(
    admin: KafkaAdminClient, settings: BrokerSettings, specs: Sequence[TopicSpec]
) -> None:
    asked = [ConfigResource(ConfigResourceType.TOPIC, s.name, list(s.configs)) for s in specs]
    try:
        told = admin.describe_configs(asked, config_filter="all").get("topic", {})
    except kafka_errors.UnsupportedVersionError:
        return
    for spec in specs:
        have = {name: config["value"] for name, config in told.get(spec.name, {}).items()}
        wrong = [n for n, want in spec.configs.items() if have.get(n, want) not in (want, None)]
        if wrong:
            raise UsageError(
                f"topic {spec.name} on {settings.bootstrap} has "
                + " and ".join(f"{name}={have[name]}" for name in wrong)
                + ", this task asks for "
                + " and ".join(f"{name}={spec.configs[name]}" for name in wrong)
                + f": kafka-configs.sh --bootstrap-server {settings.bootstrap} --alter "
                + f"--topic {spec.name} --add-config "
                + ",".join(f"{name}={spec.configs[name]}" for name in wrong)
                + ", or use another cluster"
            )


def _create(admin: KafkaAdminClient, spec: TopicSpec) -> None:
    options = {
        "num_partitions": spec.partitions,
        "replication_factor": -1,  # the cluster's default
        "configs": spec.configs,
    }
    try:
        admin.create_topics({spec.name: options})
    except kafka_errors.TopicAlreadyExistsError:
        return  # another process was faster


def group_positions(
    settings: BrokerSettings, group: str, topic: str, timeout_s: float = 3.0
) -> list[GroupPosition]:
    """Where `group` is in each partition of `topic`. A group that nobody has used yet is at no
    place: the broker makes a place for groups when it is first asked, which is waited for."""
    timeout_ms, deadline = int(timeout_s * 1000), time.monotonic() + timeout_s
    options = {"bootstrap_timeout_ms": timeout_ms, "request_timeout_ms": timeout_ms}
    with _connecting(settings):
        admin = KafkaAdminClient(**settings.client_options(), **options)
    try:
        described = admin.describe_topics([topic])[0]["partitions"]
        if not described:
            raise absent(settings, topic)
        asked = sorted(TopicPartition(topic, p["partition_index"]) for p in described)
        committed = _committed(admin, group, asked, deadline)  # first: it is never past the end
        begins = admin.list_partition_offsets(dict.fromkeys(asked, OffsetSpec.EARLIEST))
        ends = admin.list_partition_offsets(dict.fromkeys(asked, OffsetSpec.LATEST))
    except kafka_errors.KafkaError as exc:
        raise unavailable(settings, exc) from exc
    finally:
        admin.close()
    return [
        GroupPosition(tp.partition, begins[tp].offset, ends[tp].offset, committed.get(tp))
        for tp in asked
    ]


def _committed(
    admin: KafkaAdminClient, group: str, asked: list[TopicPartition], deadline: float
) -> dict[TopicPartition, int]:
    while True:
        try:
            found = admin.list_group_offsets({group: asked})[group]
            return {tp: place.offset for tp, place in found.items() if place.offset >= 0}
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
