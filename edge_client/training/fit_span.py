"""The span of a device's work in a federated round: `device.fit`, or `device.evaluate`.

The agent makes it, because the ClientApp's process ends with each message. Its parent is the span
that the server names in the work; work without one, or of the device itself, has no span.
"""

import time
from collections.abc import Callable

from streams.contract.events.traceparent import read_traceparent
from streams.contract.work import WorkReply, WorkRequest
from streams.runtime.tracing import Span, Tracing

NAMES = {"train": "device.fit", "evaluate": "device.evaluate"}

Work = Callable[[WorkRequest, bytes], tuple[WorkReply, bytes]]


def traced(
    tracing: Tracing | None, device: str, work: Work, now_ns: Callable[[], int] = time.time_ns
) -> Work:
    """Return `work`, with a span for each request that names a sampled one."""
    if tracing is None:
        return work

    def worked(request: WorkRequest, weights: bytes) -> tuple[WorkReply, bytes]:
        began_ns = now_ns()
        reply, body = work(request, weights)
        parent = read_traceparent(request.traceparent.encode(errors="replace"))
        if parent is not None and parent.sampled:
            name = NAMES[request.op]
            tracing.export(
                Span(
                    name,
                    parent.child(name, device),
                    parent,
                    began_ns,
                    now_ns(),
                    {
                        "tidewheel.device": device,
                        "tidewheel.run": request.run,
                        "tidewheel.round": request.round,
                        "tidewheel.samples": reply.samples,
                    },
                    error=reply.error or "",
                )
            )
        return reply, body

    return worked
