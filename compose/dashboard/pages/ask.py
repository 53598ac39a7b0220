"""The dialog of an action: what would change, a reason, and its confirmation."""

from collections.abc import Callable

from nicegui import run, ui

from compose.dashboard.pages.parts import el
from compose.dashboard.pages.site import Frame
from compose.dashboard.web.actions import Actions, Plan
from streams.contract.errors import TidewheelError

EXPIRED = "You have to sign in again: nothing was done"


async def ask(frame: Frame, title: str, plan: Callable[[Actions], Plan]) -> None:
    """Show what an action would change; do it when that is confirmed."""
    actions = frame.site.actions
    if actions is None or not frame.may_act:
        ui.notify(EXPIRED, type="negative")
        return
    try:
        found = await run.io_bound(plan, actions)
    except TidewheelError as exc:
        ui.notify(str(exc), type="negative", timeout=0, close_button="Close")
        return
    if found is not None:
        _dialog(frame, title, found)


def _dialog(frame: Frame, title: str, found: Plan) -> None:
    with frame.content, ui.dialog() as dialog, ui.element("div").classes("ask"):
        el("h2", text=title)
        ui.label(f"{found.text[:1].upper()}{found.text[1:]}.")
        reason = ui.input("Reason, for the history").props("maxlength=200 outlined dense")
        reason.set_visibility(found.possible)

        async def do() -> None:
            dialog.close()
            await _do(frame, found, reason.value or "")

        with ui.element("div").classes("row-of"):
            if found.possible:
                el("button", "plain-button", "Confirm").props("type=button").on("click", do)
            el("button", "plain-button", "Cancel").props("type=button").on("click", dialog.close)
    dialog.on("hide", dialog.delete)
    dialog.open()


async def _do(frame: Frame, found: Plan, reason: str) -> None:
    """The session is looked at once more: it may have ended while the dialog was open."""
    if not frame.may_act:
        ui.notify(EXPIRED, type="negative")
        return
    frame.acted()
    try:
        done = await run.io_bound(found.do, reason)
    except TidewheelError as exc:
        ui.notify(str(exc), type="negative", timeout=0, close_button="Close")
        return
    ui.notify(done, type="positive", timeout=8000)
