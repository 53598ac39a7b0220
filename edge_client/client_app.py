"""The Flower ClientApp of a device: forwards each message to the agent and returns its reply.

It has no torch and no data: the agent has both and answers over its Unix socket. The device's
SuperNode calls it in its own process. Weights pass through as one block of bytes. The records
are described in streams.contract.work.
"""

from collections.abc import Callable
from pathlib import Path

from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from edge_client.ipc import call
from streams.contract.errors import TidewheelError
from streams.contract.work import (
    BLOCK,
    SAMPLES,
    Op,
    WorkReply,
    WorkRequest,
    block_of,
    with_block,
)

Worker = Callable[[WorkRequest, bytes], tuple[WorkReply, bytes]]

SPARE_S = 10.0  # in addition to the limit: for transport


def _handed_over(message: Message, context: Context, op: Op) -> Message:
    def work(request: WorkRequest, weights: bytes) -> tuple[WorkReply, bytes]:
        timeout_s = max(request.time_budget_s, request.limit_s) + SPARE_S
        return call(_socket(context), request, weights, timeout_s=timeout_s)

    device = str(context.node_config.get("device", ""))
    return answer(message, context, op, device, work)


def answer(message: Message, context: Context, op: Op, device: str, work: Worker) -> Message:
    """Return the reply to the server's message; `work` runs its request."""
    request: WorkRequest | None = None
    try:
        request, weights = _request(message, context, op)
        reply, body = work(request, weights)
        return Message(_content(request, reply, body), reply_to=message)
    except (TidewheelError, ValueError, KeyError, TypeError) as exc:
        failed = WorkReply(device=device, error=f"{type(exc).__name__}: {exc}"[:500])
        return Message(_content(request, failed, b""), reply_to=message)


def _socket(context: Context) -> Path:
    try:
        return Path(str(context.node_config["socket"]))
    except KeyError:
        raise KeyError(
            "the SuperNode was started without socket=... in --node-config: "
            "start it by `tidewheel up` or as the documentation says"
        ) from None


def _request(message: Message, context: Context, op: Op) -> tuple[WorkRequest, bytes]:
    """Return the server's message as a request to the agent, and its block of weights."""
    records = message.content.config_records
    work = {name: value for name, value in records["work"].items() if name != BLOCK}
    request = WorkRequest.of_fields({**work, "op": op, "node": context.node_id})
    return request, block_of(records, "work") or b""


def _content(request: WorkRequest | None, reply: WorkReply, body: bytes) -> RecordDict:
    metrics = {name: float(value) for name, value in reply.metrics.items()}
    about: dict[str, str | int] = {
        "device": reply.device,
        "task": request.task if request else "",
        "task_version": request.task_version if request else 0,
        "base": reply.base,
        "error": reply.error or "",
    }
    found = with_block("device", about, body)
    content = RecordDict({name: ConfigRecord(record) for name, record in found.items()})
    content["metrics"] = MetricRecord({**metrics, SAMPLES: reply.samples})
    return content


app = ClientApp()
app.train()(lambda message, context: _handed_over(message, context, "train"))
app.evaluate()(lambda message, context: _handed_over(message, context, "evaluate"))
