"""Progress of `tidewheel up`: a live screen on a terminal, plain lines elsewhere."""

import math
import time
from collections.abc import Sequence

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from streams.contract.task.metrics import named
from streams.fleet.view import FleetView, model_number
from streams.fleet.wording import counted, digits, run_progress, share

LINE_S = 5.0


def start_lines(devices: int, stages: str) -> str:
    """Return what is said when the fleet has started: how many devices, and how many of them a new
    version goes to, stage by stage."""
    counts = [max(1, math.ceil(float(share) * devices)) for share in stages.split(",")]
    goes_to = ", then ".join(dict.fromkeys(map(str, counts)))
    of = counted(devices, "device")
    return (
        f"fleet     {of}; Ctrl-C stops everything\n"
        f"rollout   a new version goes to {goes_to} of {of} (--stages)"
    )


class Screen:
    """Shows news as they come, and the view several times a second."""

    def __init__(self, console: Console, devices: Sequence[str]) -> None:
        self._console = console
        self._devices = devices
        self._live: Live | None = None
        self._line_at = 0.0
        self._news_seen = 0
        self._last = (0.0, 0)
        self._rate = 0.0

    def say(self, text: str) -> None:
        """One line that stays."""
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def __enter__(self) -> "Screen":
        if self._console.is_terminal:
            self._live = Live(console=self._console, refresh_per_second=4, transient=True)
            self._live.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def show(self, view: FleetView, phase: str, stalled: str = "") -> None:
        """Draw, or write a line every LINE_S; news are written as they come. stalled: since when
        nothing is scored."""
        news = list(view.news)
        for text in news[self._news_seen :]:
            self.say(text)
        self._news_seen = len(news)
        self._measure(view)
        if self._live is not None:
            self._live.update(Group(self._table(view), Text(self._status(view, phase, stalled))))
        elif time.monotonic() - self._line_at >= LINE_S:
            self._line_at = time.monotonic()
            self.say(self._status(view, phase, stalled))

    def skip_news(self, view: FleetView) -> None:
        """What was on the topics before this run is not news."""
        self._news_seen = len(view.news)

    def _measure(self, view: FleetView) -> None:
        now, produced = time.monotonic(), sum(s.produced for s in view.devices.values())
        at, before = self._last
        if now - at >= 1.0:
            self._rate = max(0.0, (produced - before) / (now - at)) if at else 0.0
            self._last = (now, produced)

    def _status(self, view: FleetView, phase: str, stalled: str) -> str:
        states = list(view.devices.values())
        parts = [
            phase,
            f"{len(states)} of {len(self._devices)} devices",
            f"{sum(s.produced for s in states)} events ({self._rate:.0f}/s)",
            f"{sum(s.pending for s in states)} pending",
            counted(view.windows, "window"),
            *([stalled] if stalled else []),
        ]
        standing = view.standing
        newest = standing.offered or standing.stable
        if newest is not None:
            model = newest.model
            serving = sum(s.active == model for s in states)
            parts.append(f"{serving} serve {model}")
            agreement = view.agreement.get(model)
            if agreement and agreement.value is not None:
                parts.append(f"{agreement.called} {digits(agreement.value)}")
        if progress := run_progress(view.current_run):
            parts.append(f"run: {progress}")
        return "  ".join(parts)

    def _table(self, view: FleetView) -> Table:
        table = Table(expand=False)
        for name in ("device", "activity", "serves", "replayed", "events/s"):
            table.add_column(name)
        metric = named(view.row_metric)
        for name in ("produced", "pending", "true labels", "teacher labels", metric, "p99 us"):
            table.add_column(name, justify="right")
        for device in self._devices:
            state = view.devices.get(device)
            if state is None:
                table.add_row(device, "starting")
                continue
            score = state.accuracy.get(state.active)
            right = share(score.of_labelled if score else None)
            table.add_row(
                device,
                state.error or state.phase,
                state.active,
                f"pass {state.passes + 1}, {100 * state.replayed:.0f} %"
                if state.replayed
                else f"pass {state.passes + 1}",
                f"{state.events_per_s:.0f}",
                *(str(x) for x in (state.produced, state.pending, state.true_labels)),
                str(state.teacher_labels),
                right,
                f"{state.latency_p99_us:.0f}",
                style="green" if model_number(state.active) > 1 else "",
            )
        return table
