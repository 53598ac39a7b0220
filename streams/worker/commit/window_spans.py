"""Traces of a commit: one span `worker.window` for each window with a sampled message of `events`.

It lasts from the beginning of step 1 until the report is published, and notes the ends of the
steps. It is a child of the span that the window's newest sampled message names, links to those of
the others, and is what the headers on `scores` and `windows` name. What an assignment publishes
again from the store has no header, because the store does not have the messages.
"""

import time
from collections.abc import Sequence
from dataclasses import replace

from streams.runtime.tracing import About, Span, Tracing
from streams.worker.commit.publications import Outgoing
from streams.worker.scoring.rows import ScoredWindow
from streams.worker.scoring.scoring_step import Batch

LINKS = 128  # of a span; OpenTelemetry's own limit

Report = tuple[str, int, int]  # device, window, revision


class WindowSpans:
    """The spans of one flush."""

    def __init__(self, tracing: Tracing) -> None:
        self._tracing, self._began_ns = tracing, time.time_ns()
        self._spans: dict[Report, Span] = {}

    def scored(self, batch: Batch) -> None:
        """Begin the spans: the windows' revisions are known now."""
        for one in batch.scored if self._tracing.on else ():
            traces = {p.message.offset: p.message.trace for p in one.window.pieces}
            *others, newest = [""] + [traces[at] for at in sorted(traces) if traces[at]]
            if newest:
                links = [text for text in others if text][-LINKS:]
                report = one.window.device, one.window.start, one.revision
                self._spans[report] = self._begin(one, newest, links)
        self.note("scored")

    def _begin(self, one: ScoredWindow, parent: str, links: list[str]) -> Span:
        window = one.window
        about: About = {
            "device": window.device, "window": window.start, "revision": one.revision,
            "rows": window.rows, "partition": window.partition, "commit": one.commit,
        }  # fmt: skip
        began_ns = self._began_ns
        return self._tracing.begin("worker.window", about, parent, links, "CONSUMER", began_ns)

    def note(self, event: str) -> None:
        for span in self._spans.values():
            span.note(event)

    def marked(self, messages: Sequence[Outgoing]) -> list[Outgoing]:
        """Return messages on `scores` and `windows`, with a header where their window has one."""
        return [self._marked(m) for m in messages] if self._spans else list(messages)

    def _marked(self, message: Outgoing) -> Outgoing:
        about = dict(message.headers)
        report = about["device"].decode(), int(about["window"]), int(about["revision"])
        found = self._spans.get(report)
        return message if found is None else replace(
            message, headers=[*message.headers, *found.headers]
        )  # fmt: skip

    def end(self) -> None:
        for span in self._spans.values():
            span.end()
