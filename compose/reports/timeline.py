"""What happened to a task's models, when, why, and on what evidence.

Pure: messages of `rounds`, `releases`, `fleet` and `windows` go in, entries in order of time come
out. A message that was told twice counts once. Times are wall clock: runs' and decisions' own,
otherwise the message's timestamp, for readings may be older than their windows' reports. `fleet`
keeps a device's last word alone: that it has gone back is known by then at the latest.
"""

import json
import re
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field

from rich.console import Console

from compose.reports.fleet_view import Agreement
from compose.reports.terminal import moment
from compose.reports.wording import decision_text, digits, evaluation
from streams.contract.decisions import WITHDRAWN, Decision, Release
from streams.contract.documents import DeviceState, ModelWindow, RoundEvent, WindowReport
from streams.contract.errors import MalformedRecord, UsageError
from streams.contract.topics import FLEET, RELEASES, ROUNDS, WINDOWS, topic_name
from streams.kafka.reader import Reader, Received
from streams.kafka.settings import BrokerSettings

CONNECT_S = 2.0
UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400}

RUNS = {
    "asked": "run requested by a person",
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


def entries(task: str, messages: Iterable[Received]) -> list[Entry]:
    """What the messages tell, oldest first; what cannot be read tells nothing."""
    found: list[Entry] = []
    reports: list[tuple[int, WindowReport]] = []
    refused: set[tuple[str, str, str]] = set()
    for message in messages:
        kind = message.topic.removeprefix(f"{task}.")
        try:
            if kind == ROUNDS:
                found += _of_run(RoundEvent.decode(message.value))
            elif kind == RELEASES:
                found.append(_of_decision(Release.decode(message.value).decision))
            elif kind == FLEET and message.value is not None:
                found += _of_device(DeviceState.decode(message.value), refused)
            elif kind == WINDOWS:
                report = WindowReport.decode(message.value)
                reports.append((message.time_ms * 1000 or report.end_us, report))
        except MalformedRecord:
            continue
    found += _of_windows(reports)
    unique = {json.dumps(asdict(entry)): entry for entry in found}
    return sorted(unique.values(), key=lambda entry: entry.time_us)


def seconds(text: str) -> float:
    """ "2h", "30m", "90s" or "7d" in seconds; UsageError."""
    found = re.fullmatch(r"(\d{1,6})([smhd])", text, re.ASCII)
    if found is None:
        raise UsageError(f"--since {text}: write it as 90s, 30m, 2h or 7d")
    return int(found[1]) * UNITS_S[found[2]]


def since(found: Iterable[Entry], ago_s: float | None, now_s: float | None = None) -> list[Entry]:
    """Those of the last `ago_s`; None: all."""
    if ago_s is None:
        return list(found)
    begin = ((time.time() if now_s is None else now_s) - ago_s) * 1e6
    return [entry for entry in found if entry.time_us >= begin]


def line(entry: Entry) -> str:
    """One line for a person; the evidence is in the JSON form."""
    return f"{moment(entry.time_us)}  {entry.text}" + (f": {entry.reason}" if entry.reason else "")


def read_timeline(settings: BrokerSettings, task: str) -> list[Entry]:
    """All that the topics have; BrokerUnavailable when they cannot be read."""
    topics = [topic_name(task, name) for name in (ROUNDS, RELEASES, FLEET, WINDOWS)]
    reader = Reader(settings, topics, timeout_s=CONNECT_S)
    try:
        return entries(task, reader.read_to_end())
    finally:
        reader.close()


def print_timeline(found: Iterable[Entry], console: Console, *, as_json: bool) -> None:
    for entry in found:
        text = json.dumps(asdict(entry)) if as_json else line(entry)
        console.print(text, markup=False, highlight=False, soft_wrap=True)


def _of_run(event: RoundEvent) -> list[Entry]:
    """Evidence stands with what was made of it, and with each round's figures."""
    if event.kind in RUNS:
        text = RUNS[event.kind].format(**event.model_dump())
        return [_entry(event, "run", text, event.reason)]
    where = f"run {event.run}, round {event.round}"
    if event.kind == "aggregated":
        return [_entry(event, "round", f"{where}: updates aggregated, {event.samples} samples")]
    if event.kind == "evaluated":
        return [_entry(event, "round", f"{where}: {evaluation(event.metrics, event.metric)}")]
    if event.kind == "failed" and not event.device:
        return [_entry(event, "round", f"{where}: failed", event.reason)]
    return []


def _entry(event: RoundEvent, kind: str, text: str, reason: str = "") -> Entry:
    return Entry(event.time_us, kind, event.run, text, reason, event.metrics)


def _of_decision(decision: Decision) -> Entry:
    text = f"decision {decision.seq}: {decision_text(decision)}"
    return Entry(
        decision.time_us, "decision", decision.model or "", text,
        decision.reason, decision.evidence,
    )  # fmt: skip


def _of_device(state: DeviceState, known: set[tuple[str, str, str]]) -> list[Entry]:
    found = []
    for model, reason in state.refused.items():
        identity = state.device, model, reason
        if reason.startswith(WITHDRAWN) or identity in known:
            continue
        known.add(identity)
        text = f"device {state.device} does not serve {model}"
        found.append(Entry(state.time_us, "device", state.device, text, reason))
    return found


@dataclass
class _Day:
    """What a day's windows tell of a release."""

    last_us: int = 0
    devices: set[str] = field(default_factory=set)
    total: Agreement = field(default_factory=Agreement)

    def add(self, at_us: int, report: WindowReport, release: str, part: ModelWindow) -> None:
        self.last_us = max(self.last_us, at_us)
        self.devices.add(report.device)
        self.total.add(report, release, part)

    def entry(self, day: str, release: str) -> Entry:
        """At the last report of the day."""
        total = self.total
        counts = ("windows", "events", "compared", "agreeing", "labelled", "correct")
        evidence = {name: float(getattr(total, name)) for name in counts}
        evidence["devices"] = float(len(self.devices))
        said = "no event compared"
        if total.value is not None:
            evidence["agreement"] = total.value
            events = int(sum(events for events, _ in total.sums.values()))
            said = f"{digits(total.value)} ({events} events)"
        text = f"{release}: {total.called} on {day}: {said}"
        return Entry(self.last_us, "agreement", release, text, "", evidence)


def _of_windows(reports: Iterable[tuple[int, WindowReport]]) -> list[Entry]:
    """Drift that begins and ends by device, and by day what each served version agrees on."""
    found: list[Entry] = []
    seen: set[tuple[str, int, int]] = set()
    latest: dict[str, tuple[int, int]] = {}
    alarming: set[str] = set()
    days: dict[tuple[str, str], _Day] = defaultdict(_Day)
    for at_us, report in sorted(reports, key=lambda pair: pair[0]):
        identity = report.device, report.window_us, report.revision
        if identity in seen:
            continue
        seen.add(identity)
        day = time.strftime("%Y-%m-%d", time.localtime(at_us / 1e6))
        for model, part in report.by_release.items():
            days[day, model].add(at_us, report, model, part)
        place = report.window_us, report.revision
        if place < latest.get(report.device, (-1, -1)):
            continue  # a late row revises the past
        latest[report.device] = place
        found += _of_drift(at_us, report, alarming)
    return found + [each.entry(day, model) for (day, model), each in days.items()]


def _of_drift(at_us: int, report: WindowReport, alarming: set[str]) -> list[Entry]:
    drift, device = report.drift, report.device
    if drift is None or drift.alarm == (device in alarming):
        return []
    evidence = {"share": drift.share, "segments": float(drift.segments)}
    if not drift.alarm:
        alarming.discard(device)
        text = f"device {device}: inputs no longer drift"
        return [Entry(at_us, "drift", device, text, "", evidence)]
    alarming.add(device)
    worst = next((c for c in drift.channels if c.channel == drift.worst), None)
    evidence |= {} if worst is None else {"psi": worst.psi, "threshold": worst.threshold}
    text = f"device {device}: inputs drift"
    return [Entry(at_us, "drift", device, text, f"{drift.worst} most", evidence)]
