"""Messages of a task's topics as a Reader gives them."""

from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from streams.contract.decisions import ZERO, Decision, DesiredState, Ref, sign
from streams.contract.documents import DeviceState, Document, RoundEvent
from streams.contract.window_metrics import WindowMetric
from streams.contract.window_report import ModelWindow, WindowReport
from streams.kafka.reader import Received

TASK = "tiny"
KEY = Ed25519PrivateKey.from_private_bytes(bytes(32))


def received(topic: str, key: str, document: Document | bytes) -> Received:
    value = document if isinstance(document, bytes) else document.encode()
    return Received(f"{TASK}.{topic}", 0, 0, key.encode(), value, [])


def state(device: str, **fields: Any) -> Received:
    """A device that has produced and delivered ten events, changed by `fields`."""
    usual: dict[str, Any] = {
        "task": TASK, "time_us": 1, "epoch": "e1", "active": "1-aaaaaaaa",
        "produced": 10, "delivered": 10, "pending": 0,
    }  # fmt: skip
    document = DeviceState.of_fields({"device": device, **usual, **fields})
    return received("fleet", device, document)


def window(
    device: str,
    start_s: int,
    revision: int = 0,
    model: str = "1-aaaaaaaa",
    commit: int = 0,
    metric: WindowMetric = "accuracy",
    **counts: Any,
) -> Received:
    part = ModelWindow.of_fields({"events": 10, "agreeing": 6, "compared": 8, **counts})
    report = WindowReport(
        task=TASK, device=device, window_us=start_s * 1_000_000, end_us=(start_s + 5) * 1_000_000,
        revision=revision, events=part.events, teacher_model="1-t", models={model: part},
        commit=commit, metric=metric,
    )  # fmt: skip
    return received("windows", device, report)


def release(model: str, seq: int = 1, key: str = TASK) -> Received:
    """A decision that all devices serve `model`."""
    decision = Decision(
        task=TASK, task_version=1, seq=seq, prev=ZERO, kind="served", model=model, reason="a test",
        time_us=1, key="0" * 16,
        standing=DesiredState(stable=Ref(model=model, digest="a" * 64, size=100_000)),
    )  # fmt: skip
    return received("releases", key, sign(decision, KEY))


def step(kind: str, run: str = "7", **fields: Any) -> Received:
    event = RoundEvent.of_fields({"run": run, "kind": kind, "time_us": 1, **fields})
    return received("rounds", run, event)
