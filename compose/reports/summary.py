"""What a run of `tidewheel up` ends with: the event account, and what the fleet has learned.

Pure: figures come from the view of the fleet and from the store. `summary.json` is what `tidewheel
status --json` prints, with more of each device, and what `Summary.encode` adds.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from msgspec import structs
from rich.box import HORIZONTALS
from rich.console import Console
from rich.table import Table

from compose.reports.problems import Problem, Status, listed_counts, problems, too_many_dropped
from compose.reports.status import report_of, sums
from compose.reports.terminal import table
from streams.contract.documents import (
    Count,
    DeviceState,
    ModelScore,
    RoundEvent,
    encoded,
    model_number,
)
from streams.contract.task.metrics import named
from streams.contract.window_metrics import ERRORS
from streams.fleet.wording import AUDIT, before_after, counted, listed, share, short_runs

ServerCounts = Mapping[tuple[str, str], tuple[int, int]]  # (device, epoch) -> (scored, dropped)
OF_KEYS = ("keys", "teacher")  # decisions that are not about a version
ACCOUNT = ("produced", "delivered", "drops", "pending", "scored")
STYLES = {"critical": "red", "warning": "yellow", "note": ""}
SHORT = 12  # a device's name that is not wrapped
Figure = tuple[float | None, int]  # of so many segments


class DeviceLine(DeviceState):
    """A device's last state of an epoch, and what the server has of it. ended: its spool was lost
    and another epoch began."""

    scored: Count = 0
    dropped_seen: Count = 0
    ended: bool = False

    @property
    def drops(self) -> int:
        return sum(self.dropped.values())

    @property
    def balanced(self) -> bool:
        """Both sides agree to the event; of what waits on the device some may have arrived where
        acknowledgements were lost. An epoch whose spool was lost had no last word."""
        known, arrived = self.delivered + self.drops, self.scored + self.dropped_seen
        most = math.inf if self.ended else known + self.pending
        return self._adds_up and known <= arrived <= most

    @property
    def _adds_up(self) -> bool:
        return self.produced == self.delivered + self.drops + self.pending

    @property
    def unscored(self) -> int:
        """Events that reached the broker, and that no worker has scored or counted as dropped."""
        if self.ended or not self._adds_up:
            return 0
        return max(0, self.delivered + self.drops - self.scored - self.dropped_seen)

    @property
    def lost(self) -> int:
        """Events that were in a spool when it was lost, as far as the device has reported."""
        return max(0, self.produced - self.scored - self.dropped_seen) if self.ended else 0

    def is_paired(self, first: str | None, last: str | None) -> bool:
        """Return whether the figures of the first and of the last version are of the same held-out
        segments."""
        scores = {} if self.ended else self.accuracy  # which is the current epoch's
        after = scores.get(last or "", ModelScore())
        return after.paired > 0 and min(scores, key=model_number) == first

    def figures(self, first: str | None, last: str | None) -> tuple[Figure, Figure]:
        """Return the metric of its answers by the first and by the last version, on the same
        held-out segments where both have answered them."""
        scores = {} if self.ended else self.accuracy
        before, after = (scores.get(model or "", ModelScore()) for model in (first, last))
        if first == last:
            after = ModelScore()
        elif self.is_paired(first, last):
            base, now = after.of_paired
            return (base, after.paired), (now, after.paired)
        return (before.of_held_out, before.held_out), (after.of_held_out, after.held_out)


@dataclass(frozen=True)
class Summary:
    """The whole run. silent: devices that were started and reported nothing; broker: its kind;
    words: the worker's last line."""

    status: Status
    server: ServerCounts
    state: Path
    silent: Sequence[str] = ()
    restarts: Mapping[str, int] = field(default_factory=dict)
    closed: bool = False
    broker: str = ""
    words: str = ""

    def encode(self) -> bytes:
        """Return the file's JSON."""
        view = self.status.view
        report = report_of(self.status).replace(problems=self.problems)
        own = {
            "devices": self.devices,
            "balanced": self.balanced,
            "closed": self.closed,
            "silent": self.silent,
            "restarts": self.restarts,
            "first_model": view.first_model,
            "last_model": view.last_model,
            "row_metric": view.row_metric,
            "fleet": self.fleet,
            "agreement_called": view.latest_agreement.called,
            "runs": self.runs,
            "decisions": [f"{d.kind} {d.model}" for d in view.decided if d.kind not in OF_KEYS],
            "sql": self.sql,
        }
        return encoded(report.fields() | own, indent=1)

    @cached_property
    def devices(self) -> list[DeviceLine]:
        """Each epoch of a device."""
        current = {state.epoch for state in self.status.view.devices.values()}
        server = {key: self.server.get(key, (0, 0)) for key in self.status.view.epochs}
        return [
            DeviceLine(
                **structs.asdict(state), scored=server[key][0], dropped_seen=server[key][1],
                ended=state.epoch not in current,
            )
            for key, state in sorted(self.status.view.epochs.items())
        ]  # fmt: skip

    @property
    def balanced(self) -> bool:
        return all(line.balanced for line in self.devices)

    @property
    def means_little(self) -> bool:
        """Whether nothing was scored, or many events were dropped: then the run has failed."""
        return not self.total("scored") or too_many_dropped(self.devices)

    @property
    def left(self) -> str:
        """What is not accounted for yet, for a person; "" where nothing is."""
        pending = sum(line.pending for line in self.devices if not line.ended)
        parts = [f"{counted(pending, 'event')} pending on devices"] if pending else []
        unscored = self.total("unscored")
        parts += [f"{counted(unscored, 'event')} not scored yet"] if unscored else []
        return ", ".join(parts) or ("" if self.balanced else "an event account that is open")

    @property
    def problems(self) -> list[Problem]:
        """What went wrong, with an error or without."""
        return problems(self.status, self._problems())

    def _problems(self) -> Iterator[Problem]:
        current = [d for d in self.devices if not d.ended]
        for name in ("skipped", "irregular"):
            if counts := sum((Counter(getattr(d, name)) for d in current), Counter[str]()):
                yield Problem("warning", f"{name} on devices: {listed_counts(counts)}")
        if late := sum(d.late_labels.get("dropped", 0) for d in current):
            yield Problem("warning", f"{counted(late, 'late label')} did not reach the server")
        for d in self.devices:
            if not (d.balanced or (self.broker and d.unscored)):  # the last problem has these
                yield Problem("critical", f"The event account of {d.device} does not balance")
            if d.lost:
                lost = f"{d.device} lost its spool with {d.lost} of {d.produced} events"
                yield Problem("warning", lost)
        if not self.total("scored"):
            yield Problem("critical", "No event was scored")
        if self.silent:
            unheard = f"{listed(self.silent)} reported nothing since the start"
            yield Problem("warning", unheard, f"See {self.state}/logs/edge-{self.silent[0]}.log")
        if self.broker and (unscored := self.total("unscored")):
            kept = self.broker != "embedded"
            next_run = "the next `tidewheel up` with this state folder scores them"
            lost = "The embedded broker keeps nothing: they are lost. A real Kafka keeps them"
            then = f"They are on the broker: {next_run}" if kept else lost
            left = f"The worker had not scored {counted(unscored, 'event')} at the end"
            words = f"{then}. worker: {self.words}"
            yield Problem("warning" if kept else "critical", left, words)

    def total(self, name: str) -> int:
        return sum(int(getattr(line, name)) for line in self.devices)

    @property
    def runs(self) -> list[RoundEvent]:
        """Those that the gate decided on."""
        return [e for e in self.status.view.rounds if e.kind in ("promoted", "rejected")]

    @property
    def fleet(self) -> tuple[float | None, float | None]:
        """The figures over the held-out segments of all devices: of those that have both, if any
        has, so that the same devices are compared."""
        view = self.status.view
        found = [line.figures(view.first_model, view.last_model) for line in self.devices]
        both = [pair for pair in found if None not in (pair[0][0], pair[1][0])] or found
        power = 2 if view.row_metric == "rmse" else 1

        def mean(figures: Sequence[Figure]) -> float | None:
            known = [(value, of) for value, of in figures if value is not None]
            of = sum(count for _, count in known)
            return (sum(v**power * n for v, n in known) / of) ** (1 / power) if of else None

        return mean([before for before, _ in both]), mean([after for _, after in both])

    @property
    def sql(self) -> str:
        """A command that looks at the results with DuckDB."""
        metric = self.status.view.latest_agreement.metric
        found = f"avg({metric})" if metric in ERRORS else "sum(agreeing) / sum(compared)"
        name = metric if metric in ERRORS else "agreement"
        where = "" if str(self.state) == ".tidewheel" else f" --state {self.state}"
        columns = f"sum(events) AS events, round({found}, 3) AS {name}"
        return (
            f'tidewheel query{where} "SELECT device, model, {columns} FROM windows '
            'GROUP BY ALL ORDER BY ALL"'
        )


# --- for a person ---------------------------------------------------------------------------------


def render(summary: Summary, console: Console) -> None:
    """Print it."""
    console.print(_device_table(summary))
    for line in [*_legend(summary), *sums(summary.status.view), *_lines(summary)]:
        console.print(line, highlight=False, soft_wrap=True, markup=False)
    for problem in summary.problems:
        style = STYLES[problem.severity]
        console.print(problem.line, highlight=False, soft_wrap=True, markup=False, style=style)


def _device_table(summary: Summary) -> Table:
    """Return a table for 80 columns, without columns of zeros: the account's line has these."""
    view = summary.status.view
    first, last = view.first_model, view.last_model
    figures = ["before", "after"] if first != last else [named(view.row_metric)]
    account = [name for name in ACCOUNT if summary.total(name) or name not in ("drops", "pending")]
    right = [*figures, *("dropped" if name == "drops" else name for name in account)]
    title = f"{view.task}: devices and their event account"
    made = table(title, ("device", "serves", *right), (), right)
    made.box, made.padding = HORIZONTALS, (0, 0)
    names = [f"{line.device}, earlier" if line.ended else line.device for line in summary.devices]
    wrapped = figures if max(map(len, names), default=0) <= SHORT else [*figures, "device"]
    for column in made.columns:
        column.overflow, column.no_wrap = "fold", str(column.header) not in wrapped
    for device, line in zip(names, summary.devices, strict=True):
        other = not line.ended and line.challenger is not None and line.challenger.answers
        made.add_row(
            device,
            f"{line.active}*" if other else line.active,
            *(share(*figure) for figure in line.figures(first, last)[: len(figures)]),
            *(str(getattr(line, name)) for name in account),
            style="" if line.balanced else "red",
        )
    made.add_section()
    totals = (str(summary.total(name)) for name in account)
    made.add_row("all", "", *map(share, summary.fleet[: len(figures)]), *totals, style="bold")
    return made


def _legend(summary: Summary) -> Iterator[str]:
    view = summary.status.view
    first, last = view.first_model, view.last_model
    text = f"{named(view.row_metric)} of the device's answers by {first}"
    where = "its held-out segments (how many)"
    if first != last:
        text = f"before, after: {text} and by {last}"
        where = "the same of its held-out segments where both have answered them (how many)"
        pairs = [(line, line.figures(first, last)) for line in summary.devices]
        others = [line.device for line, (old, new) in pairs
                  if None not in (old[0], new[0]) and not line.is_paired(first, last)]  # fmt: skip
        where += f"; not on the same ones: {listed(others)}" if others else ""
    if first:
        yield f"{text}, on {where}"
    if any(state.challenger and state.challenger.answers for state in view.devices.values()):
        yield "*: an adapter, an earlier version or a copy answers"


def _lines(summary: Summary) -> Iterator[str]:
    for run in summary.runs:
        yield from _of_run(run)
    yield (
        f"devices keep {summary.total('samples'):,} segments, "
        f"{summary.total('true_labels'):,} with a true label"
    )
    counts = [summary.total(name) for name in (*ACCOUNT, "dropped_seen")]
    yield (
        "event account: {} produced = {} delivered + {} dropped + {} pending; "
        "{} scored + {} declared dropped: ".format(*counts)
        + ("balances" if summary.balanced else "DOES NOT BALANCE")
    )
    if summary.restarts:
        each = (f"{name} {counted(n, 'time')}" for name, n in summary.restarts.items())
        yield f"restarted: {', '.join(each)}"
    yield f"results: {summary.state}/store/scores (a Delta Lake table); look at them with"
    yield f"  {summary.sql}"


def _of_run(run: RoundEvent) -> Iterator[str]:
    """Yield what became of a run, and its figures on the segments that no decision uses."""
    what = f"promoted {run.model}" if run.kind == "promoted" else "refused by the gate"
    yield short_runs(f"run {run.run} {what}: {run.reason}")
    if of := int(run.metrics.get("audit_segments", 0)):
        figures = before_after(run.metrics.get("audit_base"), run.metrics.get("audit"))
        yield f"  {named(run.metric)} on held-out devices {figures} on {of} {AUDIT}"
