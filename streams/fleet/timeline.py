"""What happened to a task's models, when, why, and on what evidence. Pure.

Documents of `rounds`, `releases`, `fleet` and `windows` go in, one after the other; entries in
order of time come out, at most ENTRIES: then the oldest of the kind that has most goes, so that
decisions stay where thousands of devices drift. The view leaves out documents that come again.
Times are wall clock: runs' and decisions' own, otherwise the message's timestamp, for readings may
be older than their windows' reports. Of a device's states between two reads only the last one may
be known: that it has gone back is known by then at the latest.
"""

import time
from collections import Counter
from dataclasses import dataclass, field, replace

from streams.contract.decisions import WITHDRAWN, Decision
from streams.contract.documents import DeviceState, RoundEvent
from streams.contract.window_report import DriftReport, WindowReport
from streams.fleet.agreement import Agreement
from streams.fleet.truth import Worse
from streams.fleet.wording import counted, decision_text, digits, evaluation, short_runs

ENTRIES = 2000
DAYS = 400  # of a release's agreement, together
BRIEF = 3  # windows: an alarm that lasts no longer is one line, and so are those that follow it

RUNS = {
    "asked": "run requested by a person",
    "postponed": "a run is held back",
    "requested": "run {run} started",
    "resumed": "run {run} continues run {resumed_from}",
    "promoted": "run {run} passed the gate with {model}",
    "rejected": "run {run} refused by the gate",
    "finished": "run {run} finished",
}


@dataclass(frozen=True)
class Entry:
    """One thing that happened. `kind` is "run", "round", "decision", "device", "drift" or
    "agreement"; `about` the run, the version or the device."""

    time_us: int
    kind: str
    about: str
    text: str
    reason: str = ""
    evidence: dict[str, float] = field(default_factory=dict)


@dataclass
class Day:
    """What a day's windows tell of a release. `past` devices were counted before another day
    began; after that none is added."""

    last_us: int = 0
    past: int = 0
    devices: set[str] = field(default_factory=set)
    total: Agreement = field(default_factory=Agreement)

    def entry(self, day: str, release: str) -> Entry:
        """At the last report of the day."""
        total = self.total
        counts = ("windows", "events", "compared", "agreeing", "labelled", "correct")
        evidence = {name: float(getattr(total, name)) for name in counts}
        evidence["devices"] = float(self.past or len(self.devices))
        said = "no event compared"
        if total.value is not None:
            evidence["agreement"] = total.value
            said = f"{digits(total.value)} ({counted(total.judged, 'event')})"
        text = f"{release}: {total.called} on {day}: {said}"
        return Entry(self.last_us, "agreement", release, text, "", evidence)


@dataclass
class Alarm:
    """The last drift alarm of a device. windows: how many it lasts, or how many it has been over;
    brief: how many short ones in a row its line stands for."""

    line: Entry
    on: bool = True
    windows: int = 1
    brief: int = 0


@dataclass
class Timeline:
    """The entries so far, and what is needed to make the next ones."""

    lines: list[Entry] = field(default_factory=list)  # in order of arrival
    days: dict[tuple[str, str], Day] = field(default_factory=dict)
    """By day and release."""
    latest: dict[str, tuple[int, int]] = field(default_factory=dict)  # window, revision
    alarms: dict[str, Alarm] = field(default_factory=dict)  # by device
    refusals: dict[str, dict[str, str]] = field(default_factory=dict)  # device -> version, reason
    worsened: dict[str, str] = field(default_factory=dict)  # device -> the last version that did it

    @property
    def entries(self) -> list[Entry]:
        """Oldest first."""
        days = [each.entry(day, release) for (day, release), each in self.days.items()]
        return sorted([*self.lines, *days], key=lambda entry: entry.time_us)

    def add(self, entry: Entry) -> None:
        self.lines.append(entry)
        if len(self.lines) > ENTRIES:
            [(most, _)] = Counter(line.kind for line in self.lines).most_common(1)
            del self.lines[next(n for n, line in enumerate(self.lines) if line.kind == most)]

    def _take_back(self, entry: Entry) -> None:
        if entry in self.lines:
            self.lines.remove(entry)

    def run(self, event: RoundEvent) -> None:
        """Evidence stands with what was made of it, and with each round's figures."""
        where, metrics = f"run {event.run}, round {event.round}", event.metrics
        if event.kind in RUNS:
            text, kind, reason = RUNS[event.kind].format(**event.fields()), "run", event.reason
        elif event.kind == "aggregated":
            samples = counted(event.samples, "sample")
            text, kind, reason = f"{where}: updates aggregated, {samples}", "round", ""
        elif event.kind == "evaluated":
            text, kind, reason = f"{where}: {evaluation(metrics, event.metric)}", "round", ""
        elif event.kind == "failed" and not event.device:
            text, kind, reason = f"{where}: failed", "round", event.reason
        else:
            return
        text, reason = short_runs(text), short_runs(reason)
        self.add(Entry(event.time_us, kind, event.run, text, reason, metrics))

    def decision(self, decision: Decision) -> None:
        text = f"decision {decision.seq}: {decision_text(decision)}"
        about = decision.model or ""
        self.add(
            Entry(decision.time_us, "decision", about, text, decision.reason, decision.evidence)
        )

    def device(self, state: DeviceState) -> None:
        before = self.refusals.get(state.device, {})
        now = {m: r for m, r in state.refused.items() if not r.startswith(WITHDRAWN)}
        for model, reason in now.items():
            if before.get(model) != reason:
                text = f"device {state.device} does not serve {model}"
                self.add(Entry(state.time_us, "device", state.device, text, reason))
        if now:
            self.refusals[state.device] = now
        else:
            self.refusals.pop(state.device, None)

    def window(self, at_us: int, report: WindowReport) -> None:
        """Drift that begins and ends by device, and by day what each served version agrees on."""
        day = time.strftime("%Y-%m-%d", time.localtime(at_us / 1e6))
        for release, part in report.by_release.items():
            each = self.days.get((day, release)) or self._begin(day, release)
            each.last_us = max(each.last_us, at_us)
            if not each.past:
                each.devices.add(report.device)
            each.total.add(report, part)
        if not report.events:
            return  # labels alone
        place = report.window_us, report.revision
        if place < self.latest.get(report.device, (-1, -1)):
            return  # a late row revises the past
        self.latest[report.device] = place
        self._drift(at_us, report)

    def worse(self, at_us: int, found: Worse) -> None:
        """A device that a release made worse, once for each release."""
        if self.worsened.get(found.device) != found.after:
            self.worsened[found.device] = found.after
            text = f"device {found.device} answers worse with {found.after} than {found.before}"
            self.add(Entry(at_us, "device", found.device, text, found.text))

    def _begin(self, day: str, release: str) -> Day:
        for (_, other), each in self.days.items():
            if other == release and each.devices:
                each.past, each.devices = len(each.devices), set()
        if len(self.days) >= DAYS:
            del self.days[min(self.days, key=lambda name: self.days[name].last_us)]
        return self.days.setdefault((day, release), Day())

    def _drift(self, at_us: int, report: WindowReport) -> None:
        drift, device = report.drift, report.device
        alarm = self.alarms.get(device)
        if drift is None or (alarm is None and not drift.alarm):
            return
        if alarm is not None and drift.alarm == alarm.on:
            alarm.windows += 1
        elif drift.alarm:
            self.alarms[device] = self._begun(at_us, device, drift, alarm)
        elif alarm is not None:
            self.alarms[device] = self._ended(at_us, device, drift, alarm)

    def _begun(self, at_us: int, device: str, drift: DriftReport, before: Alarm | None) -> Alarm:
        worst = next((c for c in drift.channels if c.channel == drift.worst), None)
        evidence = _evidence(drift)
        evidence |= {} if worst is None else {"psi": worst.psi, "threshold": worst.threshold}
        text = f"device {device}: inputs drift"
        alarm = Alarm(Entry(at_us, "drift", device, text, f"{drift.worst} most", evidence))
        if before is not None and before.brief and before.windows <= BRIEF:
            self._take_back(before.line)
            alarm.brief = before.brief
        self.add(alarm.line)
        return alarm

    def _ended(self, at_us: int, device: str, drift: DriftReport, alarm: Alarm) -> Alarm:
        """One that was brief, and those before it, are one line."""
        if alarm.windows > BRIEF:
            text = f"device {device}: inputs no longer drift"
            over = Alarm(Entry(at_us, "drift", device, text, "", _evidence(drift)), on=False)
        else:
            self._take_back(alarm.line)
            times = alarm.brief + 1
            how = f"for {counted(alarm.windows, 'window')}"
            how = f"{times} times, for at most {BRIEF} windows each" if times > 1 else how
            text = f"device {device}: inputs drifted {how}"
            over = Alarm(replace(alarm.line, text=text), on=False, brief=times)
        self.add(over.line)
        return over


def _evidence(drift: DriftReport) -> dict[str, float]:
    return {"share": drift.share, "segments": float(drift.segments)}
