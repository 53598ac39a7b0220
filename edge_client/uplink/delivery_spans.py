"""The trace of each event message: its header, and the span `device.deliver`.

The span lasts from when the events were produced until the broker has acknowledged their message.
The spool does not store when an event was produced, so the uplink notes at each look how far the
spool has come: the span begins up to one look later (1 s, a few seconds without a broker), and
for events of an earlier process at the start of this one.
"""

import time
from bisect import bisect_right
from collections import deque
from collections.abc import Callable

from edge_client.spool.queue import Spool
from edge_client.uplink.messages import Message
from streams.contract.events.messages import Headers
from streams.contract.events.traceparent import (
    TraceParent,
    event_trace,
    span_id,
    traceparent_of,
)
from streams.contract.task import Task
from streams.runtime.tracing import Span, Tracing, Value

NAME = "device.deliver"
LOOKS = 4096  # that are remembered: about 100 bytes each

Answered = Callable[[Exception | None], None]


class DeliverySpans:
    """Makes headers and spans of one device's event messages; `now_ns` is the wall clock."""

    def __init__(
        self,
        tracing: Tracing,
        task: Task,
        device: str,
        spool: Spool,
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._tracing, self._task, self._device = tracing, task.name, device
        self._spool, self._now_ns = spool, now_ns
        self._looks: deque[tuple[int, int]] = deque(maxlen=LOOKS)  # next seq, when it was seen
        self.look()

    def look(self) -> None:
        """Note how far the spool has come by now."""
        seq = self._spool.next_seq
        if not self._looks or self._looks[-1][0] != seq:
            self._looks.append((seq, self._now_ns()))

    def headers(self, first: int, last: int) -> Headers:
        """Return the header of the message of the events first..last; none if its trace is not
        sampled, to save bytes on the line."""
        trace = event_trace(self._task, self._device, self._spool.epoch, first)
        if not self._tracing.samples(trace):
            return []
        return [TraceParent(trace, span_id(trace, NAME, last)).header]

    def until_acknowledged(self, message: Message, answered: Answered) -> Answered:
        """Return what takes the producer's answer: `answered`, and then the span if the message
        has a header."""
        at = traceparent_of(message.wire[2])
        if at is None:
            return answered
        start_ns, sent_ns = self._produced_ns(message.first), self._now_ns()

        def done(error: Exception | None) -> None:
            answered(error)  # first: nothing of a trace may come before the delivery
            if error is None:
                attributes: dict[str, Value] = {
                    "tidewheel.device": self._device,
                    "tidewheel.epoch": self._spool.epoch,
                    "tidewheel.first": message.first,
                    "tidewheel.last": message.last,
                    "tidewheel.count": message.last - message.first + 1,
                    "tidewheel.waited_ms": max(0, sent_ns - start_ns) // 1_000_000,
                }
                end_ns = self._now_ns()
                self._tracing.export(
                    Span(NAME, at, None, start_ns, end_ns, attributes, kind="producer")
                )

        return done

    def _produced_ns(self, seq: int) -> int:
        """Return when `seq` was seen in the spool first."""
        place = bisect_right(self._looks, seq, key=lambda look: look[0])
        return self._looks[place][1] if place < len(self._looks) else self._now_ns()
