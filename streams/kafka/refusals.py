"""Translation of kafka-python's errors to BrokerUnavailable, with the cause in one line.

kafka-python retries until a timeout and then reports only the timeout. The causes of failed
attempts, and topics that a broker does not have, appear only in its log, so a handler on that log
remembers the last ones.
"""

import contextlib
import logging
import re
import time
from collections.abc import Iterator

from kafka import KafkaConsumer
from kafka import errors as kafka_errors

from streams.contract.errors import BrokerUnavailable, MessageRefused, TopicMissing
from streams.kafka import patches
from streams.kafka.settings import BrokerSettings

patches.install()  # here, because each module that uses the library imports this one

# The library logs each failed connection attempt; errors and metrics report what matters.
logging.getLogger("kafka").setLevel(logging.CRITICAL)

SOURCES = "kafka.net.manager", "kafka.cluster"  # the library's loggers
SETTINGS = "TIDEWHEEL_KAFKA_"
NOT_FOUND = "Topic %s not found in cluster metadata"
HUNG_UP = (  # sometimes the only sign of a refusal that the library sees
    "it closes the connection without an answer: it is starting or stopping, or check "
    f"{SETTINGS}SECURITY_PROTOCOL, {SETTINGS}SASL_MECHANISM (PLAIN where it is not set), "
    f"{SETTINGS}USERNAME and {SETTINGS}PASSWORD"
)
RECENT_S = 60.0
REFUSED = {  # a message for good: sent again it is refused again
    kafka_errors.MessageSizeTooLargeError: "too-large",
    kafka_errors.RecordListTooLargeError: "too-large",
    kafka_errors.InvalidRecordError: "refused",
}
_PREFIX = re.compile(r"^(\[Error \d+\] )?(\w+Error: )*")


class Listener(logging.Handler):
    """Memory of the last connection failure that waiting does not fix."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._last: tuple[float, str] | None = None
        self._hung_up = 0.0
        self._missing: dict[object, float] = {}  # topics

    def emit(self, record: logging.LogRecord) -> None:
        arguments = record.args if isinstance(record.args, tuple) else ()
        if record.msg == NOT_FOUND:
            self._missing[arguments[0]] = time.monotonic()
        for argument in arguments:
            if isinstance(argument, Exception) and (why := explain(argument)):
                self._last = time.monotonic(), why
            elif isinstance(argument, Exception) and "disconnected" in str(argument):
                self._hung_up = time.monotonic()

    def since(self, began: float) -> str | None:
        """Return the last such reason logged since `began`, by the monotonic clock. A broker that
        has just refused may close the next connection without one."""
        last = self._last
        hung_up = self._hung_up >= began
        if last and last[0] >= began - (RECENT_S if hung_up else 0.0):
            return last[1]
        return HUNG_UP if hung_up else None

    def missed(self, topic: str, began: float) -> bool:
        """Return whether a broker has said since `began` that it does not have the topic."""
        return self._missing.get(topic, float("-inf")) >= began


def listen() -> Listener:
    """Redirect the library's log of connections and metadata to a Listener."""
    listener = Listener()
    for source in SOURCES:
        log = logging.getLogger(source)
        log.setLevel(logging.WARNING)
        log.propagate = False
        log.addHandler(listener)
    return listener


def explain(exc: Exception) -> str | None:
    """Return what is wrong and what to do; None if the broker may just be unavailable."""
    name, text = type(exc).__name__, str(exc)
    if "CERTIFICATE_VERIFY_FAILED" in text:
        advice = f"set {SETTINGS}CAFILE to the certificate of the authority that signed it"
        advice = "renew it" if "expired" in text else advice
        advice = "use an address that is in it" if "mismatch" in text else advice
        return f"its certificate is not trusted ({_brief(text)}): {advice}"
    if ("ALERT" in text and "CERTIFICATE" in text) or "UNKNOWN_CA" in text:
        return (
            f"it requires a client certificate that it trusts ({_brief(text)}): "
            f"set {SETTINGS}CERTFILE and {SETTINGS}KEYFILE to one that its authority signed"
        )
    if "SSL" in text:
        return f"TLS fails ({_brief(text)}): check {SETTINGS}SECURITY_PROTOCOL and the port"
    if "Authentication" in name or "SaslAuthentication" in text:
        return (
            f"it refuses the user ({_brief(text)}): "
            f"check {SETTINGS}USERNAME, {SETTINGS}PASSWORD and {SETTINGS}SASL_MECHANISM"
        )
    if name == "UnsupportedSaslMechanismError":
        return f"{_brief(text)}: check {SETTINGS}SASL_MECHANISM"
    if name == "InvalidReceiveError":
        return f"it does not speak this protocol: check {SETTINGS}SECURITY_PROTOCOL and the port"
    return None


def _brief(text: str) -> str:
    """Return the first line of the text, without error names and OpenSSL's source line."""
    return _PREFIX.sub("", text.splitlines()[0]).partition(" (_ssl.c")[0][:160]


_listener = listen()


@contextlib.contextmanager
def connecting(settings: BrokerSettings) -> Iterator[None]:
    """Raise connection failures as BrokerUnavailable, with the broker's reason if it gave one."""
    began = time.monotonic()
    try:
        yield
    except (kafka_errors.KafkaError, OSError) as exc:
        if why := _listener.since(began) or explain(exc):
            raise BrokerUnavailable(f"Kafka at {settings.bootstrap}: {why}") from exc
        raise unavailable(settings, exc) from exc


@contextlib.contextmanager
def translated(settings: BrokerSettings) -> Iterator[None]:
    """Raise the library's errors as BrokerUnavailable."""
    try:
        yield
    except kafka_errors.KafkaError as exc:
        raise unavailable(settings, exc) from exc


@contextlib.contextmanager
def sending(settings: BrokerSettings, topic: str) -> Iterator[None]:
    """As `translated`, and TopicMissing where the broker answers and does not have the topic."""
    began = time.monotonic()
    try:
        yield
    except kafka_errors.KafkaTimeoutError as exc:
        missing = _listener.missed(topic, began)
        raise (absent(settings, topic) if missing else unavailable(settings, exc)) from exc
    except kafka_errors.KafkaError as exc:
        raise unavailable(settings, exc) from exc


def unavailable(settings: BrokerSettings, exc: Exception) -> BrokerUnavailable:
    """Return a library error as one line for a person.

    Rejections of a client are reported as such and retried, because permissions may change; that
    of a message is a MessageRefused.
    """
    refuses = f"Kafka at {settings.bootstrap} refuses"
    for kind, reason in REFUSED.items():
        if isinstance(exc, kind):
            return MessageRefused(
                reason,
                f"{refuses} a message: {type(exc).__name__}: {exc}: check the topic's "
                "max.message.bytes and the brokers' message size",
            )
    if isinstance(
        exc, kafka_errors.AuthorizationError | kafka_errors.SaslAuthenticationFailedError
    ):
        return BrokerUnavailable(
            f"{refuses}: {type(exc).__name__}: {exc}: "
            "check user, password and ACLs (TIDEWHEEL_KAFKA_*)"
        )
    if isinstance(exc, kafka_errors.BrokerResponseError):
        return BrokerUnavailable(f"{refuses}: {type(exc).__name__}: {exc}")
    return BrokerUnavailable(
        f"no Kafka broker answers at {settings.bootstrap} ({type(exc).__name__}): "
        "start one, or name another with --kafka HOST:PORT"
    )


def partitions_of(
    consumer: KafkaConsumer, settings: BrokerSettings, topic: str, deadline: float
) -> list[int]:
    """Wait for a topic that was just created; return its partitions."""
    while not (found := consumer.partitions_for_topic(topic)):
        if time.monotonic() > deadline:
            raise absent(settings, topic)
        time.sleep(0.1)
    return sorted(found)


def absent(settings: BrokerSettings, topic: str) -> TopicMissing:
    return TopicMissing(
        f"topic {topic} is not on {settings.bootstrap}: "
        "start `tidewheel worker` or `tidewheel up`, which create it"
    )
