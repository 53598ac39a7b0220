"""The trace of a federated run.

    run          from its start to its verdict
    run.round    one for each round, from the first look at the nodes to the new weights
    run.gate     the evaluation on the devices, and the decision

A round and the gate are children of the run. The work that is sent out names the span of its round
or of the gate, and the device's agent makes the span of its work as a child (fit_span.py). Messages
on `rounds` name the span in which they are published.

Every run is traced when tracing is on, whatever the share of messages is: runs are few. A run that
resumes another is a trace of its own, with a link to the run that died, whose own span is missing:
a span is exported when it ends.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from streams.contract.events.messages import Headers
from streams.contract.events.traceparent import TraceParent, run_trace, span_id
from streams.runtime.tracing import Span, Tracing, Value

NAME = "run"


def run_span(task: str, run: str) -> TraceParent:
    """Return the span of a run."""
    trace = run_trace(task, run)
    return TraceParent(trace, span_id(trace, NAME))


class RunSpans:
    """Exports the spans of one run; does nothing without `tracing`. `now_ns` is the wall clock."""

    def __init__(
        self,
        tracing: Tracing | None,
        task: str,
        run: str,
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._tracing, self._task, self._run, self._now_ns = tracing, task, run, now_ns
        self._began_ns = now_ns()
        self._at = self._current = run_span(task, run)

    @property
    def traceparent(self) -> str:
        """What messages name now; "" if there are no traces."""
        return "" if self._tracing is None else self._current.text

    @property
    def headers(self) -> Headers:
        """The headers of messages that are published now."""
        return [] if self._tracing is None else [self._current.header]

    @contextmanager
    def part(self, name: str, number: int) -> Iterator[None]:
        """Export a part of the run when it ends; `number` is the round's."""
        start_ns, self._current = self._now_ns(), self._at.child(name, number)
        error = ""
        try:
            yield
        except BaseException as exc:
            error = type(exc).__name__
            raise
        finally:
            about = {"tidewheel.round": number}
            self._export(name, self._current, self._at, start_ns, about, error=error)
            self._current = self._at

    def end(self, outcome: str | None, resumed_from: str) -> None:
        """Export the run itself, and wait a little for the collector; outcome: None if the run was
        interrupted."""
        links = [run_span(self._task, resumed_from)] if resumed_from else []
        about = {"tidewheel.outcome": outcome or "interrupted"}
        failed = outcome is None or outcome.startswith("failed")
        error = about["tidewheel.outcome"] if failed else ""
        self._export(NAME, self._at, None, self._began_ns, about, links, error)
        if self._tracing is not None:
            self._tracing.close()

    def _export(
        self,
        name: str,
        at: TraceParent,
        parent: TraceParent | None,
        start_ns: int,
        about: Mapping[str, Value],
        links: Sequence[TraceParent] = (),
        error: str = "",
    ) -> None:
        if self._tracing is None:
            return
        about = {**about, "tidewheel.run": self._run}
        span = Span(name, at, parent, start_ns, self._now_ns(), about, links, error=error)
        self._tracing.export(span)
