"""What a run of `tidewheel up` ends with: the account, and what the fleet has learned.

Pure: figures come from the devices' last words on `fleet`, from `windows` and
`rounds`, and from the store.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from compose.reports.summary.lines import DeviceLine, RunLine, ServerCounts, device_line
from streams.contract.window_metrics import ERRORS, WindowMetric
from streams.fleet.agreement import Agreement
from streams.fleet.view import FleetView
from streams.fleet.wording import counted, listed

DROPPED_SHARE = 0.01  # of all events: more dropped events fail the run


@dataclass(frozen=True)
class Summary:
    """The whole run. `row_metric`: of devices' answers; `metric`: of runs and held-out devices."""

    task: str
    row_metric: str
    metric: str
    devices: list[DeviceLine]
    agreement_called: str  # what windows tell, as `RMSE from the teacher`
    agreement_before: float | None
    agreement_after: float | None
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
    phases: dict[str, float]
    store: str
    sql: str
    runs: list[RunLine] = field(default_factory=list)  # those that the gate decided on
    decisions: list[str] = field(default_factory=list)  # about models, in their order
    restarts: dict[str, int] = field(default_factory=dict)
    labels_stored: int = 0
    why_unscored: str = ""  # what becomes of events that no worker has scored
    silent: list[str] = field(
        default_factory=list
    )  # devices that were started and reported nothing

    @property
    def balanced(self) -> bool:
        return all(line.balanced for line in self.devices)

    @property
    def left(self) -> str:
        """What is not accounted for yet, for a person; "" where nothing is."""
        pending = sum(line.pending for line in self.devices if not line.ended)
        parts = [f"{counted(pending, 'event')} pending on devices"] if pending else []
        parts += [f"{counted(self.unscored, 'event')} not scored yet"] if self.unscored else []
        parts += [] if parts or self.balanced else ["an event account that is open"]
        return ", ".join(parts)

    @property
    def unscored(self) -> int:
        """Events that reached the broker, and that no worker has scored or counted as dropped."""
        return sum(
            max(0, line.delivered + line.dropped - line.scored - line.dropped_seen)
            for line in self.devices
            if not line.ended
        )

    @property
    def unheard(self) -> str:
        """Which devices of the run reported nothing, for a person; "" where all did."""
        if not self.silent:
            return ""
        where = f"logs/edge-{self.silent[0]}.log"
        return f"{listed(self.silent)} reported nothing since the start: see {where}"

    @property
    def late_labels(self) -> Counter[str]:
        """All devices' labels that were sent by themselves: produced, delivered, …"""
        return sum((Counter(line.late_labels) for line in self.devices), Counter[str]())

    @property
    def warnings(self) -> list[str]:
        """What went wrong without an error, for a person; with any of `grave` the run failed."""
        found = [*self.grave, *([self.unheard] if self.silent else [])]
        found += [self.why_unscored] if self.why_unscored else []
        skipped = sum((Counter(line.skipped) for line in self.devices), Counter[str]())
        if skipped:
            found.append(f"skipped on devices: {_reasons(skipped)}")
        irregular = sum((Counter(line.irregular) for line in self.devices), Counter[str]())
        if irregular:
            found.append(f"irregular on devices: {_reasons(irregular)}")
        if lost := self.late_labels["dropped"]:
            found.append(f"{lost} labels that became known later did not reach the server")
        found += [f"{line.device}: {line.error}" for line in self.devices if line.error]
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

    def _pairs(self, when: str) -> list[tuple[float, int]]:
        """Figures before or after, and of how many segments: of the devices that have both, if any
        has, so that the same devices are compared."""
        both = [d for d in self.devices if d.before is not None and d.after is not None]
        return [
            (getattr(line, when), getattr(line, f"{when}_of"))
            for line in both or self.devices
            if getattr(line, when) is not None
        ]

    def of_fleet(self, when: str) -> int:
        return sum(n for _, n in self._pairs(when))

    def fleet_figure(self, when: str) -> float | None:
        """Over these devices' held-out segments, before or after."""
        pairs, of = self._pairs(when), self.of_fleet(when)
        power = 2 if self.row_metric == "rmse" else 1
        return (sum(v**power * n for v, n in pairs) / of) ** (1 / power) if of else None

    def to_json(self) -> dict[str, Any]:
        return {
            **asdict(self),
            "balanced": self.balanced,
            "warnings": self.warnings,
            "fleet_before": self.fleet_figure("before"),
            "fleet_after": self.fleet_figure("after"),
        }


def summarize(
    view: FleetView,
    server: ServerCounts,
    phases: Mapping[str, float],
    store: Path,
    state: Path,
    metric: str = "accuracy",
) -> Summary:
    """Put the figures together; `metric` is the name of the task's."""
    first, last = view.first_model, view.last_model
    served = {d.model for d in view.decisions.values() if d.kind == "served"}
    runs = [RunLine.of(e) for e in view.rounds if e.kind in ("promoted", "rejected")]
    passed = [run for run in runs if run.promoted and run.model in served]
    before, after = (view.agreement.get(m or "") for m in (first, last))
    newer = last != first
    stable = view.standing.stable
    return Summary(
        task=view.task,
        row_metric=view.row_metric,
        metric=metric,
        devices=[
            device_line(state, server, first, last, ended=state.epoch != view.devices[name].epoch)
            for (name, _), state in sorted(view.epochs.items())
            if name in view.devices
        ],
        agreement_called=(after or before or Agreement()).called,
        agreement_before=before.value if before else None,
        agreement_after=after.value if after and newer else None,
        windows=view.windows,
        windows_late=view.windows_late,
        rounds=view.count("aggregated"),
        admitted=view.count("admitted"),
        refused=view.count("refused"),
        failed=view.count("failed"),
        first_model=first,
        last_model=last,
        stable_model=stable.model if stable else last,
        held_out_before=(passed or runs)[0].audit_base if runs else None,
        held_out_after=passed[-1].audit if passed else None,
        phases=dict(phases),
        store=str(store / "scores"),
        sql=query_line(state, (after or before or Agreement()).metric),
        runs=runs,
        decisions=[
            f"{d.kind} {d.model}"
            for _, d in sorted(view.decisions.items())
            if d.kind not in ("keys", "teacher")
        ],
    )


def query_line(state: Path, metric: WindowMetric = "accuracy") -> str:
    """A command that looks at the results with DuckDB."""
    if metric in ERRORS:
        columns = f"sum(events) AS events, round(avg({metric}), 3) AS {metric} FROM windows"
    else:
        columns = "count(*) AS events, round(avg(agrees::INT), 3) AS agreement FROM scores"
    sql = f"SELECT device, model, {columns} GROUP BY ALL ORDER BY ALL"
    where = "" if str(state) == ".tidewheel" else f" --state {state}"
    return f'tidewheel query{where} "{sql}"'


def _reasons(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{reason} {n}" for reason, n in sorted(counts.items()))
