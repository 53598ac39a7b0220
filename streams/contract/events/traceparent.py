"""The header `traceparent` and the ids in it, as the W3C recommendation Trace Context has them.

    00-<trace, 32 hex digits>-<span, 16 hex digits>-<flags, 2 hex digits>

Digits are lower case, no id is all zeros, and bit 0 of the flags says that the trace is sampled.
What is written has the flags 01 or 00; other bits are ignored when read, as the recommendation
demands, and every other text is no header.

Ids are not random. A trace is named after what it follows, so a message that is sent or processed
again has the same ids, and anybody can compute them:

    trace of a message of `events`   SHA-256 of <task>/events/<device>/<epoch>/<first seq>
    trace of a federated run         SHA-256 of <task>/rounds/<run>
    span                             SHA-256 of <trace>/<name>/<what tells it from others>

of which a trace takes the first 16 bytes and a span the first 8. Whether a trace is sampled depends
on its last 8 bytes alone, as in OpenTelemetry's TraceIdRatioBased: all processes agree, and a
larger share contains a smaller one.
"""

import re
from collections.abc import Iterable
from hashlib import sha256
from typing import NamedTuple

from streams.contract.topics import EVENTS, ROUNDS

TRACEPARENT = "traceparent"
_FORM = re.compile(rb"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")


class TraceParent(NamedTuple):
    """One span of a trace, as a header names it; ids in hex digits."""

    trace: str
    span: str
    sampled: bool = True

    @property
    def text(self) -> str:
        """The header's value."""
        return f"00-{self.trace}-{self.span}-{int(self.sampled):02d}"

    @property
    def header(self) -> tuple[str, bytes]:
        return TRACEPARENT, self.text.encode()

    def child(self, *names: str | int) -> "TraceParent":
        """Return a span of the same trace; `names` tell it from the other children."""
        return TraceParent(self.trace, span_id(self.trace, self.span, *names), self.sampled)


def read_traceparent(value: bytes | None) -> TraceParent | None:
    """Return what a header's value names; None for everything that is not of the form above."""
    match = _FORM.fullmatch(value or b"")
    if match is None:
        return None
    trace, span, flags = (part.decode() for part in match.groups())
    if not int(trace, 16) or not int(span, 16):
        return None
    return TraceParent(trace, span, bool(int(flags, 16) & 1))


def traceparent_of(headers: Iterable[tuple[str, bytes | None]]) -> TraceParent | None:
    """Return what a message's header names; None without one, or with several."""
    found = [value for name, value in headers if name == TRACEPARENT]
    return read_traceparent(found[0]) if len(found) == 1 else None


def event_trace(task: str, device: str, epoch: str, first: int) -> str:
    """Return the trace of the message of `events` that begins with the seq `first`."""
    return _digest(task, EVENTS, device, epoch, first)[:32]


def run_trace(task: str, run: str) -> str:
    """Return the trace of a federated run."""
    return _digest(task, ROUNDS, run)[:32]


def span_id(trace: str, *names: str | int) -> str:
    """Return the id of the span of `trace` that `names` tell from the others."""
    return _digest(trace, *names)[:16]


def is_sampled(trace: str, share: float) -> bool:
    """Return whether a trace belongs to the sampled `share`, 0 to 1, of all traces."""
    return int(trace[16:], 16) < round(share * 2**64)


def _digest(*names: str | int) -> str:
    return sha256("/".join(map(str, names)).encode()).hexdigest()
