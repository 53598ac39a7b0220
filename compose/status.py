"""`tidewheel status`: the fleet as its topics tell it."""

import json
import time
from typing import Any

from rich.console import Console
from rich.table import Table

from compose.summary import share
from compose.view import View
from streams.contract.bus import BrokerSettings, Reader

SILENT_S = 15.0


def read_view(settings: BrokerSettings, task: str, timeout_s: float = 10.0) -> View:
    """Everything that the topics hold now; BrokerUnavailable when they cannot be read."""
    reader = Reader(settings, View.topics(task), timeout_s=timeout_s)
    view = View(task)
    try:
        for message in reader.read_to_end():
            view.absorb(message)
    finally:
        reader.close()
    return view


def to_json(view: View) -> dict[str, Any]:
    return {
        "task": view.task,
        "release": view.release.model_dump() if view.release else None,
        "devices": [state.model_dump() for _, state in sorted(view.devices.items())],
        "windows": view.windows,
        "agreement": {m: a.share for m, a in view.agreement.items()},
        "rounds": {
            kind: view.count(kind)
            for kind in ("aggregated", "admitted", "refused", "promoted", "rejected")
        },
    }


def print_status(view: View, console: Console, *, as_json: bool) -> None:
    if as_json:
        console.print_json(json.dumps(to_json(view)))
        return
    table = Table(title=f"{view.task}: {len(view.devices)} devices")
    for name in ("device", "doing", "serves", "was"):
        table.add_column(name)
    for name in ("produced", "delivered", "dropped", "pending", "accuracy", "seen"):
        table.add_column(name, justify="right")
    for _, state in sorted(view.devices.items()):
        age = time.time() - state.time_us / 1e6
        score = state.accuracy.get(state.active)
        right = score.correct / score.labelled if score and score.labelled else None
        silent = age > SILENT_S and state.phase != "stopped"
        table.add_row(
            state.device,
            state.error or ("silent" if silent else state.phase),
            state.active,
            state.previous or "",
            *(str(x) for x in (state.produced, state.delivered)),
            str(sum(state.dropped.values())),
            str(state.pending),
            share(right),
            f"{age:.0f} s ago",
        )
    console.print(table)
    release = view.release.model if view.release else "none"
    console.print(f"release {release}; {view.windows} windows closed", highlight=False)
    for model, agreement in view.agreement.items():
        console.print(
            f"agreement of {model} with the teacher {share(agreement.share)} "
            f"in {agreement.events} events",
            highlight=False,
        )
    console.print(
        f"rounds {view.count('aggregated')}: updates admitted {view.count('admitted')}, "
        f"refused {view.count('refused')}; runs promoted {view.count('promoted')}, "
        f"rejected {view.count('rejected')}",
        highlight=False,
    )
