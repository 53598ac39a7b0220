"""A tracing.SpanExporter that keeps what it is given."""

from streams.runtime.tracing import Span, Tracing


class RecordedSpans:
    """`fails` makes every call raise."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.fails = False
        self.closed = 0

    def put(self, span: Span) -> None:
        if self.fails:
            raise RuntimeError("no room")
        self.spans.append(span)

    def close(self, timeout_s: float) -> bool:
        self.closed += 1
        return True

    def named(self, name: str) -> list[Span]:
        return [span for span in self.spans if span.name == name]


def recording(share: float = 1.0) -> tuple[RecordedSpans, Tracing]:
    recorded = RecordedSpans()
    return recorded, Tracing(recorded, share)
