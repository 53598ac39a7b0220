"""What a run of `tidewheel up` ends with: the event account, what the fleet has learned, and the
tables that show it.

Figures are pure: they come from the devices' last states on `fleet`, from `windows` and `rounds`,
and from the store. `summary.json` is a Summary.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from msgspec import structs
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from compose.reports.terminal import table
from streams.contract.documents import (
    Count,
    DeviceState,
    Document,
    ModelScore,
    RoundEvent,
    encoded,
    model_number,
)
from streams.contract.task.metrics import named
from streams.contract.window_metrics import ERRORS, WindowMetric
from streams.fleet.agreement import Agreement
from streams.fleet.view import FleetView
from streams.fleet.wording import AUDIT, before_after, counted, listed, share, short_runs

DROPPED_SHARE = 0.01  # of all events: more dropped events fail the run
ServerCounts = Mapping[tuple[str, str], tuple[int, int]]  # (device, epoch) -> (scored, dropped)
OF_KEYS = ("keys", "teacher")  # decisions that are not about a version
ACCOUNT = ("produced", "delivered", "drops", "pending", "scored")


class DeviceLine(DeviceState):
    """A device's last state of an epoch, what the server has of it, and its answers under the first
    and the last version, of so many segments. ended: its spool was lost and another epoch began."""

    scored: Count = 0
    dropped_seen: Count = 0
    before: float | None = None
    after: float | None = None
    before_of: Count = 0
    after_of: Count = 0
    ended: bool = False

    @property
    def drops(self) -> int:
        return sum(self.dropped.values())

    @property
    def balanced(self) -> bool:
        """Both sides agree to the event; what waits on the device is all that is missing. An epoch
        whose spool was lost had no last word: more may have arrived than it knew of, not less."""
        known, arrived = self.delivered + self.drops, self.scored + self.dropped_seen
        device_side = self.produced == known + self.pending
        return device_side and (known <= arrived if self.ended else known == arrived)

    @property
    def lost(self) -> int:
        """Events that were in a spool when it was lost, as far as the device has reported."""
        return max(0, self.produced - self.scored - self.dropped_seen) if self.ended else 0

    @property
    def instead(self) -> str:
        """What answers in place of the served version, and why."""
        other = None if self.ended else self.challenger
        return other.text if other is not None and other.answers else ""


class Summary(Document):
    """The whole run. `row_metric`: of devices' answers; `metric`: of runs and held-out devices."""

    task: str
    row_metric: str
    metric: str
    devices: list[DeviceLine]
    agreement_called: str  # what windows tell, as `RMSE from the teacher`
    agreement_before: float | None
    agreement_after: float | None
    fleet_before: float | None  # of the devices' held-out segments
    fleet_after: float | None
    windows: int
    windows_late: int
    rounds: int
    admitted: int
    refused: int
    failed: int
    first_model: str | None
    last_model: str | None  # the highest that a device serves
    stable_model: str | None  # that all are to serve
    held_out_before: float | None
    held_out_after: float | None
    store: str
    sql: str
    runs: list[RoundEvent]  # those that the gate decided on
    decisions: list[str]  # about models, in their order
    restarts: dict[str, int] = {}
    why_unscored: str = ""  # what becomes of events that no worker has scored
    silent: list[str] = []  # devices that were started and reported nothing
    worse: list[str] = []  # what labels say: the last release is wrong; devices that it made worse
    closed: bool = False

    def encode(self) -> bytes:
        """Return the file's JSON; it has `balanced` and `warnings` too."""
        derived = {"balanced": self.balanced, "warnings": self.warnings}
        return encoded(self.fields() | derived, indent=1)

    @property
    def balanced(self) -> bool:
        return all(line.balanced for line in self.devices)

    @property
    def left(self) -> str:
        """What is not accounted for yet, for a person; "" where nothing is."""
        pending = sum(line.pending for line in self.devices if not line.ended)
        parts = [f"{counted(pending, 'event')} pending on devices"] if pending else []
        parts += [f"{counted(self.unscored, 'event')} not scored yet"] if self.unscored else []
        return ", ".join(parts) or ("" if self.balanced else "an event account that is open")

    @property
    def unscored(self) -> int:
        """Events that reached the broker, and that no worker has scored or counted as dropped."""
        current = (d for d in self.devices if not d.ended)
        return sum(max(0, d.delivered + d.drops - d.scored - d.dropped_seen) for d in current)

    @property
    def unheard(self) -> str:
        """Which devices of the run reported nothing, for a person; "" where all did."""
        where = f"see logs/edge-{self.silent[0]}.log" if self.silent else ""
        return f"{listed(self.silent)} reported nothing since the start: {where}" if where else ""

    @property
    def warnings(self) -> list[str]:
        """What went wrong without an error, for a person; with any of `grave` the run failed."""
        found = [*self.grave, self.unheard, self.why_unscored]
        for kind in ("skipped", "irregular"):
            reasons = _reasons(getattr(line, kind) for line in self.devices)
            found.append(f"{kind} on devices: {reasons}" if reasons else "")
        if lost := sum(d.late_labels.get("dropped", 0) for d in self.devices if not d.ended):
            found.append(f"{lost} labels that became known later did not reach the server")
        found += self.worse
        found += [f"{d.device}: {d.error}" for d in self.devices if d.error and not d.ended]
        spools = ((d, f"{d.lost} of {d.produced} events") for d in self.devices if d.lost)
        found += [f"{line.device} lost its spool with {events}" for line, events in spools]
        return [text for text in found if text]

    @property
    def grave(self) -> list[str]:
        """Why the run's figures mean little: nothing was scored, or many events were dropped."""
        produced, dropped = self.total("produced"), self.total("drops")
        found = [] if self.total("scored") else ["no event was scored"]
        if dropped > DROPPED_SHARE * produced:
            share_of = f"{dropped} of {produced} events were dropped ({dropped / produced:.0%})"
            found.append(f"{share_of}: {_reasons(line.dropped for line in self.devices)}")
        return found

    def total(self, name: str) -> int:
        return sum(int(getattr(line, name)) for line in self.devices)


def summarize(
    view: FleetView,
    server: ServerCounts,
    store: Path,
    state: Path,
    metric: str = "accuracy",
) -> Summary:
    """Put the figures together; `metric` is the name of the task's."""
    first, last, standing = view.first_model, view.last_model, view.standing
    served = {d.model for d in view.decisions.values() if d.kind == "served"}
    runs = [e for e in view.rounds if e.kind in ("promoted", "rejected")]
    passed = [run for run in runs if run.kind == "promoted" and run.model in served]
    before, after = (view.agreement.get(m or "") for m in (first, last))
    shown = after or before or Agreement()
    lines = [
        _line(state, server, first, last, ended=state.epoch != view.devices[name].epoch)
        for (name, _), state in sorted(view.epochs.items())
    ]
    return Summary(
        task=view.task, row_metric=view.row_metric, metric=metric, devices=lines,
        fleet_before=_of_all(lines, "before", view.row_metric),
        fleet_after=_of_all(lines, "after", view.row_metric),
        agreement_called=shown.called,
        agreement_before=before.value if before else None,
        agreement_after=after.value if after and last != first else None,
        windows=view.windows, windows_late=view.windows_late, rounds=view.count("aggregated"),
        admitted=view.count("admitted"), refused=view.count("refused"), failed=view.count("failed"),
        first_model=first, last_model=last,
        stable_model=standing.stable.model if standing.stable else last,
        held_out_before=_audit((passed or runs)[0])[0] if runs else None,
        held_out_after=_audit(passed[-1])[1] if passed else None,
        store=str(store / "scores"), sql=query_line(state, shown.metric),
        runs=runs,
        worse=[*([wrong.text] if (wrong := view.truth.wrong(last or "")) is not None else []),
               *(f"{w.device} answers worse with {w.after} than {w.before}: {w.text}"
                 for w in view.worse)],
        decisions=[f"{d.kind} {d.model}" for d in view.decided if d.kind not in OF_KEYS],
    )  # fmt: skip


def _line(
    state: DeviceState, server: ServerCounts, first: str | None, last: str | None, *, ended: bool
) -> DeviceLine:
    scored, seen = server.get((state.device, state.epoch), (0, 0))
    found = DeviceLine(**structs.asdict(state), scored=scored, dropped_seen=seen, ended=ended)
    if ended:  # its figures are the current epoch's
        return found
    before, after = (state.accuracy.get(m or "", ModelScore()) for m in (first, last))
    if first == last:
        after = ModelScore()
    figures, of = (before.of_held_out, after.of_held_out), (before.held_out, after.held_out)
    if after.paired and min(state.accuracy, key=model_number) == first:
        figures, of = after.of_paired, (after.paired, after.paired)
    names = ("before", "after", "before_of", "after_of")
    return found.replace(**dict(zip(names, (*figures, *of), strict=True)))


def _of_all(lines: Sequence[DeviceLine], when: str, metric: str) -> float | None:
    """Return the figure before or after over the held-out segments of all devices: of those that
    have both, if any has, so that the same devices are compared."""
    both = [d for d in lines if d.before is not None and d.after is not None]
    found = [(getattr(d, when), getattr(d, f"{when}_of")) for d in both or lines]
    pairs, power = [pair for pair in found if pair[0] is not None], 2 if metric == "rmse" else 1
    of = sum(count for _, count in pairs)
    return (sum(v**power * n for v, n in pairs) / of) ** (1 / power) if of else None


def _audit(event: RoundEvent) -> tuple[float | None, float | None, int]:
    """Return the metric before and after on the segments that no decision uses, and their count;
    None where nothing was evaluated."""
    found, of = event.metrics, int(event.metrics.get("audit_segments", 0))
    return (found.get("audit_base"), found.get("audit"), of) if of else (None, None, 0)


def query_line(state: Path, metric: WindowMetric = "accuracy") -> str:
    """A command that looks at the results with DuckDB."""
    columns = "count(*) AS events, round(avg(agrees::INT), 3) AS agreement FROM scores"
    if metric in ERRORS:
        columns = f"sum(events) AS events, round(avg({metric}), 3) AS {metric} FROM windows"
    where = "" if str(state) == ".tidewheel" else f" --state {state}"
    return f'tidewheel query{where} "SELECT device, model, {columns} GROUP BY ALL ORDER BY ALL"'


def _reasons(counts: Iterable[Mapping[str, int]]) -> str:
    total = sum(map(Counter, counts), Counter[str]())
    return ", ".join(f"{reason} {n}" for reason, n in sorted(total.items()))


# --- tables ---------------------------------------------------------------------------------------


def render(summary: Summary, console: Console) -> None:
    """Print the tables at the end."""
    console.print(_device_table(summary))
    console.print(_figures(summary))
    results = f"results   {summary.store} (a Delta Lake table)\nlook      {summary.sql}"
    console.print(results, highlight=False, soft_wrap=True, markup=False)
    for warning in summary.warnings:
        console.print(f"[yellow]warning   {escape(warning)}[/yellow]", soft_wrap=True)
    if not summary.balanced:
        wrong = [line.device for line in summary.devices if not line.balanced]
        console.print(f"[red]the event account of {', '.join(wrong)} does not balance[/red]")


def _device_table(summary: Summary) -> Table:
    right = ("before", "after", "produced", "delivered", "dropped", "pending", "scored")
    made = table(
        f"{summary.task}: devices and their event account", ("device", "serves", *right), (), right
    )
    for line in summary.devices:
        made.add_row(
            f"{line.device}, earlier" if line.ended else line.device,
            f"{line.active}, another answers" if line.instead else line.active,
            share(line.before, line.before_of),
            share(line.after, line.after_of),
            *(str(getattr(line, name)) for name in ACCOUNT),
            style="" if line.balanced else "red",
        )
    made.add_section()
    totals = (str(summary.total(name)) for name in ACCOUNT)
    made.add_row("all", "", share(summary.fleet_before), share(summary.fleet_after), *totals,
                 style="bold")  # fmt: skip
    made.caption = (
        f"before, after: {named(summary.row_metric)} of the device's answers by the first and by "
        "the last version, on the same of its held-out segments where both have answered them "
        "(how many)"
    )
    return made


def _figures(summary: Summary) -> Table:
    models = dict.fromkeys(model for model in (summary.first_model, summary.stable_model) if model)
    tried = summary.last_model not in (None, summary.stable_model)
    held_out = before_after(summary.held_out_before, summary.held_out_after)
    of = _audit(summary.runs[-1])[2] if summary.runs else 0
    sums = [summary.total(name) for name in (*ACCOUNT, "dropped_seen")]
    other = (f"{line.device} {line.instead}" for line in summary.devices if line.instead)
    rows = {
        "model served": (" → ".join(models) or "-")
        + (f"; {summary.last_model} on some devices only" if tried else ""),
        f"{named(summary.metric)} on held-out devices": held_out + (f" on {of} {AUDIT}" * bool(of)),
        summary.agreement_called: before_after(summary.agreement_before, summary.agreement_after),
        "windows": f"{summary.windows} closed, {summary.windows_late} revised by late events",
        "rounds": f"{summary.rounds} with {summary.admitted} updates admitted, "
        f"{summary.refused} refused, {summary.failed} failed",
        "labels": f"devices keep {summary.total('samples'):,} segments, "
        f"{summary.total('true_labels'):,} with a true label",
        "runs": "\n".join(map(_run, summary.runs)) or "-",
        "releases": ", ".join(summary.decisions) or "-",
        "event account": "{} produced = {} delivered + {} dropped + {} pending; "
        "{} scored + {} declared dropped: ".format(*sums)
        + ("balances" if summary.balanced else "DOES NOT BALANCE"),
        "answer instead": "\n".join(other),
        "restarted": ", ".join(f"{k} {counted(n, 'time')}" for k, n in summary.restarts.items()),
    }  # fmt: skip
    grid = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, text in rows.items():
        if text:
            grid.add_row(name, escape(text))
    return grid


def _run(run: RoundEvent) -> str:
    promoted = run.kind == "promoted"
    what = f"promoted {run.model}" if promoted else "refused by the gate"
    before, after, of = _audit(run)
    audit = "" if promoted or after is None else f"; {before_after(before, after)} on {of} {AUDIT}"
    return short_runs(f"{run.run} {what}: {run.reason}") + audit
