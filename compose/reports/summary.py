"""What a run of `tidewheel up` ends with: the account, and what the fleet has learned.

Pure but for the rendering: figures come from the devices' last words on `fleet`, from `windows` and
`rounds`, and from the store.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from compose.reports.fleet_view import FleetView, model_number
from compose.reports.wording import before_after
from streams.contract.documents import DeviceState, ModelScore, RoundEvent

DROPPED_SHARE = 0.01  # of all events: more dropped events fail the run

ServerCounts = Mapping[tuple[str, str], tuple[int, int]]  # (device, epoch) -> (scored, dropped)


@dataclass(frozen=True)
class DeviceLine:
    """One device: its account on both sides, its answers under the first and the last version."""

    device: str
    epoch: str
    produced: int
    delivered: int
    dropped: int
    pending: int
    scored: int
    dropped_seen: int
    first: str
    last: str
    before: float | None
    after: float | None
    before_of: int
    after_of: int
    drops: dict[str, int] = field(default_factory=dict)  # by reason
    skipped: dict[str, int] = field(default_factory=dict)  # readings and answers, by reason
    ended: bool = False  # its spool was lost and another epoch began

    @property
    def balanced(self) -> bool:
        """Both sides agree to the event; what waits on the device is all that is missing. An epoch
        whose spool was lost had no last word: more may have arrived than it knew of, not less."""
        device_side = self.produced == self.delivered + self.dropped + self.pending
        known, arrived = self.delivered + self.dropped, self.scored + self.dropped_seen
        return device_side and (known <= arrived if self.ended else known == arrived)

    @property
    def lost(self) -> int:
        """Events that were in a spool when it was lost, as far as the device has told."""
        return max(0, self.produced - self.scored - self.dropped_seen) if self.ended else 0


@dataclass(frozen=True)
class RunLine:
    """What the gate said of a federated run: shares before and after, None where nothing was
    evaluated. `audit` is of segments that decide nothing."""

    run: str
    model: str | None
    promoted: bool
    reason: str
    devices_base: float | None
    devices: float | None
    audit_base: float | None
    audit: float | None
    audit_segments: int

    @classmethod
    def of(cls, event: RoundEvent) -> "RunLine":
        found, promoted = event.metrics, event.kind == "promoted"

        def share(name: str) -> float | None:
            rows = found.get(f"{name.removesuffix('_base')}_segments")
            return found.get(name) if rows else None

        return cls(
            event.run, event.model, promoted, event.reason, share("devices_base"),
            share("devices"), share("audit_base"), share("audit"),
            int(found.get("audit_segments", 0)),
        )  # fmt: skip


@dataclass(frozen=True)
class Summary:
    """The whole run."""

    task: str
    devices: list[DeviceLine]
    agreement_before: float | None
    agreement_after: float | None
    windows: int
    windows_late: int
    rounds: int
    admitted: int
    refused: int
    failed: int
    first_model: str | None
    last_model: str | None
    held_out_before: float | None
    held_out_after: float | None
    phases: dict[str, float]
    store: str
    sql: str
    runs: list[RunLine] = field(default_factory=list)  # those that the gate decided on
    decisions: list[str] = field(default_factory=list)  # about models, in their order
    restarts: dict[str, int] = field(default_factory=dict)

    @property
    def balanced(self) -> bool:
        return all(line.balanced for line in self.devices)

    @property
    def left(self) -> str:
        """What is not accounted for yet, for a person; "" where nothing is."""
        now = [line for line in self.devices if not line.ended]
        pending = sum(line.pending for line in now)
        unscored = sum(
            max(0, line.delivered + line.dropped - line.scored - line.dropped_seen) for line in now
        )
        parts = [f"{pending} events pending on devices"] if pending else []
        parts += [f"{unscored} events not scored yet"] if unscored else []
        parts += [] if parts or self.balanced else ["an event account that is open"]
        return ", ".join(parts)

    @property
    def warnings(self) -> list[str]:
        """What went wrong without an error, for a person; with any of `grave` the run failed."""
        found = list(self.grave)
        skipped = sum((Counter(line.skipped) for line in self.devices), Counter[str]())
        if skipped:
            found.append(f"skipped on devices: {_reasons(skipped)}")
        found += [
            f"{line.device} lost its spool with {line.lost} of {line.produced} events"
            for line in self.devices
            if line.lost
        ]
        return found

    @property
    def grave(self) -> list[str]:
        """Why the run's figures mean little: nothing was scored, or many events were dropped."""
        produced, dropped = self.total("produced"), self.total("dropped")
        found = []
        if not self.total("scored"):
            found.append("no event was scored")
        if dropped > DROPPED_SHARE * produced:
            drops = sum((Counter(line.drops) for line in self.devices), Counter[str]())
            found.append(
                f"{dropped} of {produced} events were dropped ({dropped / produced:.0%}): "
                f"{_reasons(drops)}"
            )
        return found

    def total(self, name: str) -> int:
        return sum(int(getattr(line, name)) for line in self.devices)

    def fleet_accuracy(self, when: str) -> float | None:
        """Over all devices' held-out segments, before or after."""
        pairs = [
            (getattr(line, when), getattr(line, f"{when}_of"))
            for line in self.devices
            if getattr(line, when) is not None
        ]
        of = sum(n for _, n in pairs)
        return sum(share * n for share, n in pairs) / of if of else None

    def to_json(self) -> dict[str, Any]:
        return {
            **asdict(self),
            "balanced": self.balanced,
            "warnings": self.warnings,
            "fleet_before": self.fleet_accuracy("before"),
            "fleet_after": self.fleet_accuracy("after"),
        }


def summarize(
    view: FleetView, server: ServerCounts, phases: Mapping[str, float], store: Path, state: Path
) -> Summary:
    """Put the figures together."""
    first, last = view.first_model, view.last_model
    served = {d.model for d in view.decisions.values() if d.kind == "served"}
    runs = [RunLine.of(e) for e in view.rounds if e.kind in ("promoted", "rejected")]
    passed = [run for run in runs if run.promoted and run.model in served]
    before, after = (view.agreement.get(m or "") for m in (first, last))
    newer = last != first
    return Summary(
        task=view.task,
        devices=[
            _line(state, server, first, last, ended=state.epoch != view.devices[name].epoch)
            for (name, _), state in sorted(view.epochs.items())
            if name in view.devices
        ],
        agreement_before=before.share if before else None,
        agreement_after=after.share if after and newer else None,
        windows=view.windows,
        windows_late=view.windows_late,
        rounds=view.count("aggregated"),
        admitted=view.count("admitted"),
        refused=view.count("refused"),
        failed=view.count("failed"),
        first_model=first,
        last_model=last,
        held_out_before=passed[0].audit_base if passed else None,
        held_out_after=passed[-1].audit if passed else None,
        phases=dict(phases),
        store=str(store / "scores"),
        sql=query_line(state),
        runs=runs,
        decisions=[
            f"{d.kind} {d.model}"
            for _, d in sorted(view.decisions.items())
            if d.kind not in ("keys", "teacher")
        ],
    )


def query_line(state: Path) -> str:
    """A command that looks at the results with DuckDB."""
    sql = (
        "SELECT device, model, count(*) AS events, round(avg(agrees::INT), 3) AS agreement "
        "FROM scores GROUP BY ALL ORDER BY ALL"
    )
    where = "" if str(state) == ".tidewheel" else f" --state {state}"
    return f'tidewheel query{where} "{sql}"'


def _line(
    state: DeviceState, server: ServerCounts, first: str | None, last: str | None, *, ended: bool
) -> DeviceLine:
    scored, dropped_seen = server.get((state.device, state.epoch), (0, 0))
    none = ModelScore()
    before, after = (state.accuracy.get(m or "", none) for m in (first, last))
    if first == last:
        after = none
    if ended:  # its figures went on with the device
        before = after = none
    pair = after.paired and min(state.accuracy, key=model_number) == first
    counts = [
        (after.paired_base_correct, after.paired) if pair else _held(before),
        (after.paired_correct, after.paired) if pair else _held(after),
    ]
    shares = [right / of if of else None for right, of in counts]
    return DeviceLine(
        device=state.device,
        epoch=state.epoch,
        produced=state.produced,
        delivered=state.delivered,
        dropped=sum(state.dropped.values()),
        pending=state.pending,
        scored=scored,
        dropped_seen=dropped_seen,
        first=first or "",
        last=state.active,
        before=shares[0],
        after=shares[1],
        before_of=counts[0][1],
        after_of=counts[1][1],
        drops=state.dropped,
        skipped=state.skipped,
        ended=ended,
    )


def _held(score: ModelScore) -> tuple[int, int]:
    return score.held_out_correct, score.held_out


def render(summary: Summary, console: Console) -> None:
    """The tables at the end."""
    console.print(_device_table(summary))
    console.print(_figures(summary))
    console.print(
        f"results   {summary.store} (a Delta Lake table)", highlight=False, soft_wrap=True
    )
    console.print(f"look      {summary.sql}", highlight=False, soft_wrap=True, markup=False)
    for warning in summary.warnings:
        console.print(f"[yellow]warning   {escape(warning)}[/yellow]", soft_wrap=True)
    if not summary.balanced:
        wrong = [line.device for line in summary.devices if not line.balanced]
        console.print(f"[red]the event account of {', '.join(wrong)} does not balance[/red]")


def _device_table(summary: Summary) -> Table:
    table = Table(title=f"{summary.task}: devices and their event account")
    table.add_column("device")
    table.add_column("serves")
    for name in ("before", "after", "produced", "delivered", "dropped", "pending", "scored"):
        table.add_column(name, justify="right")
    for line in summary.devices:
        table.add_row(
            f"{line.device}, earlier" if line.ended else line.device,
            line.last,
            share(line.before, line.before_of),
            share(line.after, line.after_of),
            *(str(x) for x in (line.produced, line.delivered, line.dropped, line.pending)),
            str(line.scored),
            style="" if line.balanced else "red",
        )
    table.add_section()
    totals = [summary.total(n) for n in ("produced", "delivered", "dropped", "pending", "scored")]
    before, after = summary.fleet_accuracy("before"), summary.fleet_accuracy("after")
    counts = summary.total("before_of"), summary.total("after_of")
    table.add_row(
        "all",
        "",
        share(before, counts[0]),
        share(after, counts[1]),
        *(str(x) for x in totals),
        style="bold",
    )
    table.caption = (
        "before, after: accuracy of the device's answers by the first and by the last version, "
        "on the same of its held-out segments where both have answered them (how many)"
    )
    return table


def _figures(summary: Summary) -> Table:
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    rows = {
        "model served": _served(summary),
        "accuracy on held-out devices": _held_out(summary),
        "agreement with the teacher": before_after(
            summary.agreement_before, summary.agreement_after
        ),
        "windows": f"{summary.windows} closed, {summary.windows_late} revised by late events",
        "rounds": f"{summary.rounds} with {summary.admitted} updates admitted, "
        f"{summary.refused} refused, {summary.failed} failed",
        "runs": "\n".join(_run(run) for run in summary.runs) or "-",
        "releases": ", ".join(summary.decisions) or "-",
        "event account": _account(summary),
        "seconds": ", ".join(f"{name} {s:.1f}" for name, s in summary.phases.items()),
    }
    if summary.restarts:
        rows["restarted"] = ", ".join(f"{k} {n} times" for k, n in summary.restarts.items())
    for name, text in rows.items():
        table.add_row(name, text)
    return table


def _held_out(summary: Summary) -> str:
    shares = before_after(summary.held_out_before, summary.held_out_after)
    of = next((run.audit_segments for run in reversed(summary.runs) if run.promoted), 0)
    return f"{shares} ({of} segments that decide nothing)" if of else shares


def _run(run: RunLine) -> str:
    what = f"promoted {run.model}" if run.promoted else "refused by the gate"
    audit = before_after(run.audit_base, run.audit)
    text = f"{run.run} {what}: {run.reason}"
    return text if run.promoted or run.audit is None else f"{text}; held-out devices {audit}"


def _served(summary: Summary) -> str:
    models = dict.fromkeys(model for model in (summary.first_model, summary.last_model) if model)
    return " → ".join(models) or "-"


def _account(summary: Summary) -> str:
    produced, delivered = summary.total("produced"), summary.total("delivered")
    dropped, pending = summary.total("dropped"), summary.total("pending")
    scored, seen = summary.total("scored"), summary.total("dropped_seen")
    verdict = "balances" if summary.balanced else "DOES NOT BALANCE"
    return (
        f"{produced} produced = {delivered} delivered + {dropped} dropped + {pending} pending; "
        f"{scored} scored + {seen} declared dropped: {verdict}"
    )


def _reasons(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{reason} {n}" for reason, n in sorted(counts.items()))


def share(value: float | None, of: int = 0) -> str:
    if value is None:
        return "-"
    return f"{value:.2f} ({of})" if of else f"{value:.2f}"
