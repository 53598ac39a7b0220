"""kafka-python's errors as BrokerUnavailable, with the cause in one line for a person.

kafka-python retries until its time is over and then reports only the timeout. The cause of each
failed attempt appears in its log alone, so a handler on that log remembers the last one.
"""

import contextlib
import logging
import re
import time
from collections.abc import Iterator

from kafka import errors as kafka_errors

from streams.contract.errors import BrokerUnavailable
from streams.kafka.settings import BrokerSettings

# The library logs each failed connection attempt; what matters comes back as an error or a metric.
logging.getLogger("kafka").setLevel(logging.CRITICAL)

SOURCE = "kafka.net.manager"
SETTINGS = "TIDEWHEEL_KAFKA_"
HUNG_UP = (  # sometimes all that the library hears of a refusal
    "it hangs up without an answer: it is starting or stopping, or check "
    f"{SETTINGS}SECURITY_PROTOCOL, {SETTINGS}USERNAME and {SETTINGS}PASSWORD"
)
_PREFIX = re.compile(r"^(\[Error \d+\] )?(\w+Error: )*")


class Listener(logging.Handler):
    """Remembers when a connection last failed for a reason that waiting does not mend."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._last: tuple[float, str] | None = None
        self._hung_up = 0.0

    def emit(self, record: logging.LogRecord) -> None:
        for argument in record.args if isinstance(record.args, tuple) else ():
            if isinstance(argument, Exception) and (why := explain(argument)):
                self._last = time.monotonic(), why
            elif isinstance(argument, Exception) and "disconnected" in str(argument):
                self._hung_up = time.monotonic()

    def since(self, began: float) -> str | None:
        """The last such reason that was heard since `began`, by the monotonic clock."""
        last = self._last
        if last and last[0] >= began:
            return last[1]
        return HUNG_UP if self._hung_up >= began else None


def listen() -> Listener:
    """Take the library's log of connections over: to be read by us, not by people."""
    listener, log = Listener(), logging.getLogger(SOURCE)
    log.setLevel(logging.WARNING)
    log.propagate = False
    log.addHandler(listener)
    return listener


def explain(exc: Exception) -> str | None:
    """What is wrong and what to do; None where the broker may just be away."""
    name, text = type(exc).__name__, str(exc)
    if "CERTIFICATE_VERIFY_FAILED" in text:
        return (
            f"its certificate is not trusted ({_brief(text)}): "
            f"set {SETTINGS}CAFILE to the certificate of the authority that signed it"
        )
    if ("ALERT" in text and "CERTIFICATE" in text) or "UNKNOWN_CA" in text:
        return (
            f"it takes no client without a certificate that it trusts ({_brief(text)}): "
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
    """The library's text in one line, without names of errors and OpenSSL's source line."""
    return _PREFIX.sub("", text.splitlines()[0]).partition(" (_ssl.c")[0][:160]


_listener = listen()


@contextlib.contextmanager
def connecting(settings: BrokerSettings) -> Iterator[None]:
    """A client is made: what fails is told with the reason, where the broker gave one."""
    began = time.monotonic()
    try:
        yield
    except (kafka_errors.KafkaError, OSError) as exc:
        if why := _listener.since(began) or explain(exc):
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
