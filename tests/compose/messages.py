"""Messages of a task's topics as a Reader gives them."""

from typing import Any

from streams.contract.bus import Received
from streams.contract.documents import (
    DeviceState,
    Document,
    ModelWindow,
    Release,
    RoundEvent,
    WindowReport,
)

TASK = "tiny"


def received(topic: str, key: str, document: Document | bytes) -> Received:
    value = document if isinstance(document, bytes) else document.encode()
    return Received(f"{TASK}.{topic}", 0, 0, key.encode(), value, [])


def state(device: str, **fields: Any) -> Received:
    """A device that has produced and delivered ten events, changed by `fields`."""
    usual: dict[str, Any] = {
        "task": TASK, "time_us": 1, "epoch": "e1", "active": "1-aaaaaaaa",
        "produced": 10, "delivered": 10, "pending": 0,
    }  # fmt: skip
    document = DeviceState.model_validate({"device": device, **usual, **fields})
    return received("fleet", device, document)


def window(
    device: str, start_s: int, revision: int = 0, model: str = "1-aaaaaaaa", **counts: int
) -> Received:
    part = ModelWindow.model_validate({"events": 10, "agreeing": 6, "compared": 8, **counts})
    report = WindowReport(
        task=TASK, device=device, window_us=start_s * 1_000_000, end_us=0, revision=revision,
        events=part.events, teacher_model="1-t", models={model: part},
    )  # fmt: skip
    return received("windows", device, report)


def release(model: str, digit: str = "a", key: str = TASK) -> Received:
    document = Release(
        task=TASK, task_version=1, number=int(model.partition("-")[0]), model=model,
        digest=digit * 64, size=1, chunks=1, offset=0, reason="served",
    )  # fmt: skip
    return received("releases", key, document)


def step(kind: str, run: str = "7", **fields: Any) -> Received:
    event = RoundEvent.model_validate({"run": run, "kind": kind, "time_us": 1, **fields})
    return received("rounds", run, event)
