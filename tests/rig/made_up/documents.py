"""Documents with the usual fields, for tests that look at a few of them."""

from typing import Any

from streams.contract.documents import DeviceState
from streams.contract.window_report import ModelWindow, WindowReport
from streams.contract.work import Op, Work, WorkRequest


def device_state(device: str = "d0", /, **fields: Any) -> DeviceState:
    """Of a device of the tiny task that has produced nothing."""
    usual = {"task": "tiny", "time_us": 0, "epoch": "e", "active": "1-a", "produced": 0,
             "delivered": 0, "pending": 0}  # fmt: skip
    return DeviceState.of_fields({"device": device, **usual, **fields})


def window_report(
    device: str, number: int, models: dict[str, ModelWindow], /, **fields: Any
) -> WindowReport:
    """Of the window that begins at the microsecond `number` and lasts for one."""
    usual = {"task": "tiny", "end_us": number + 1, "revision": 0, "teacher_model": "1-t",
             "events": sum(part.events for part in models.values())}  # fmt: skip
    about = {"device": device, "window_us": number, "models": models}
    return WindowReport.of_fields({**usual, **about, **fields})


def work(**fields: Any) -> Work:
    """What a round of run 7 asks of a device."""
    usual = {"run": "7", "round": 1, "task": "tiny", "task_version": 1, "base": "1-a", "epochs": 1,
             "batch_size": 32, "learning_rate": 0.02, "seed": 3, "time_budget_s": 20.0}  # fmt: skip
    return Work.of_fields({**usual, **fields})


def work_request(op: Op = "train", /, **fields: Any) -> WorkRequest:
    """What a device's agent is asked in a round of run 7."""
    usual = {"run": "7", "round": 1, "task": "tiny", "task_version": 1, "base": "1-a", "epochs": 1,
             "batch_size": 16, "learning_rate": 0.05}  # fmt: skip
    return WorkRequest.of_fields({"op": op, **usual, **fields})
