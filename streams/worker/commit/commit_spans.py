"""The spans of a commit: what happened to the sampled messages of `events`.

    worker.score     step 1, a span for each part of a message in one window
    worker.store     step 2, the same
    worker.publish   step 3, one for each report of a window
    worker.skip      rows of a message that were there already: in the store or in an open window

`worker.score`, `worker.store` and `worker.skip` are children of the span that the message's header
names. `worker.publish` belongs to the trace of the window's newest sampled message: it is a child
of that message's `worker.store`, links to those of the others, and is what the headers on `scores`
and `windows` name. What an assignment publishes again from the store has no header, because the
store does not have the messages.

Ids are computed from the message's span, the window and the first seq, so rows that are scored
again after a crash have the same ids. Spans that waited for export when a worker was killed are
lost; of a message that comes again there is a `worker.skip` then.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from streams.contract.events.event_columns import EventColumns
from streams.contract.events.traceparent import TraceParent, traceparent_of
from streams.runtime.tracing import Span, Tracing, Value
from streams.worker.commit.incoming import Incoming
from streams.worker.commit.publications import Outgoing
from streams.worker.scoring.rows import ScoredWindow
from streams.worker.scoring.scoring_step import Batch
from streams.worker.windows.tumbling import Message, WindowSlice

LINKS = 128  # of a span; OpenTelemetry's own limit

Report = tuple[str, int, int]  # device, window, revision


@dataclass(frozen=True)
class _Traced:
    """A sampled part of a window; `at` is the span of its message."""

    one: ScoredWindow
    piece: WindowSlice
    at: TraceParent

    def span(self, name: str) -> TraceParent:
        return self.at.child(name, self.piece.window, self.piece.events.first)

    @property
    def report(self) -> Report:
        return self.one.window.device, self.one.window.start, self.one.revision

    @property
    def attributes(self) -> dict[str, Value]:
        events, window = self.piece.events, self.one.window
        return {
            **_about(events, window.partition, self.piece.message),
            "tidewheel.window": window.start,
            "tidewheel.revision": self.one.revision,
            "tidewheel.commit": self.one.commit,
        }


class CommitSpans:
    """Exports the spans of one worker, one flush at a time; does nothing without `tracing`.

    `now_ns` is the wall clock.
    """

    def __init__(
        self, tracing: Tracing | None = None, now_ns: Callable[[], int] = time.time_ns
    ) -> None:
        self._tracing, self._now_ns = tracing, now_ns
        self._began_ns = 0
        self._published: dict[Report, tuple[TraceParent, Span]] = {}

    def parent(self, incoming: Incoming) -> TraceParent | None:
        """Return the span that a message's header names; None unless it is sampled."""
        if self._tracing is None:
            return None
        found = traceparent_of(incoming.headers)
        return found if found is not None and found.sampled else None

    def taken(self, partition: int, message: Message, events: EventColumns) -> None:
        """Export `worker.skip` for rows that were there before this message."""
        known = events.count - message.unsealed
        if self._tracing is None or message.trace is None or not known:
            return
        at, now_ns = message.trace.child("worker.skip", partition, message.offset), self._now_ns()
        about = {**_about(events, partition, message), "tidewheel.known": known}
        span = Span("worker.skip", at, message.trace, now_ns, now_ns, about, kind="consumer")
        self._tracing.export(span)

    def begin(self) -> None:
        """Note that step 1 begins."""
        self._began_ns = self._now_ns()
        self._published.clear()

    def scored(self, batch: Batch) -> None:
        """Export the spans of step 1."""
        self._export("worker.score", _traced(batch) if self._tracing is not None else [])

    def stored(self, batch: Batch) -> None:
        """Export the spans of step 2, and prepare those of step 3."""
        traced = _traced(batch) if self._tracing is not None else []
        self._export("worker.store", traced)
        by_report: dict[Report, list[_Traced]] = {}
        for each in traced:
            by_report.setdefault(each.report, []).append(each)
        for report, parts in by_report.items():
            self._published[report] = _publication(report, parts, self._began_ns)

    def marked(self, messages: Sequence[Outgoing]) -> list[Outgoing]:
        """Return messages on `scores` and `windows`, with a header where their window has a sampled
        message."""
        if not self._published:
            return list(messages)
        return [self._marked(message) for message in messages]

    def _marked(self, message: Outgoing) -> Outgoing:
        about = dict(message.headers)
        report = about["device"].decode(), int(about["window"]), int(about["revision"])
        found = self._published.get(report)
        if found is None:
            return message
        return replace(message, headers=[*message.headers, found[0].header])

    def published(self) -> None:
        """Export the spans of step 3."""
        end_ns = self._now_ns()
        for _, span in self._published.values():
            if self._tracing is not None:
                self._tracing.export(replace(span, end_ns=end_ns))
        self._published.clear()

    def _export(self, name: str, traced: Sequence[_Traced]) -> None:
        """Export one step's spans, which end now; the next step begins."""
        start_ns, self._began_ns = self._began_ns, self._now_ns()
        for each in traced:
            span = Span(
                name, each.span(name), each.at, start_ns, self._began_ns, each.attributes,
                kind="consumer",
            )  # fmt: skip
            if self._tracing is not None:
                self._tracing.export(span)


def _traced(batch: Batch) -> list[_Traced]:
    return [
        _Traced(one, piece, piece.message.trace)
        for one in batch.scored
        for piece in one.window.pieces
        if piece.message.trace is not None
    ]


def _publication(report: Report, parts: list[_Traced], start_ns: int) -> tuple[TraceParent, Span]:
    """Return what a report's headers name, and its span, which is not over."""
    ordered = sorted(parts, key=lambda part: part.piece.message.offset)
    stored = [part.span("worker.store") for part in ordered]
    newest = ordered[-1].at
    at = newest.child("worker.publish", report[1], report[2])
    about = {**ordered[-1].attributes, "tidewheel.messages": len(parts)}
    links = stored[:-1][-LINKS:]
    span = Span("worker.publish", at, stored[-1], start_ns, start_ns, about, links, "producer")
    return at, span


def _about(events: EventColumns, partition: int, message: Message) -> dict[str, Value]:
    return {
        "tidewheel.device": events.device,
        "tidewheel.epoch": events.epoch,
        "tidewheel.first": events.first,
        "tidewheel.last": events.last,
        "tidewheel.partition": partition,
        "tidewheel.offset": message.offset,
    }
