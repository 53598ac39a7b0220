"""A fleet at one moment, and what is wrong with it, as `status` and the console show it. Pure."""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from compose.reports.follower import Lag, retention_lines
from compose.reports.terminal import moment
from streams.contract.accounting import LabelDelay
from streams.contract.decisions import WITHDRAWN
from streams.contract.documents import YEAR_1980_US, DeviceState
from streams.fleet.following import MOST
from streams.fleet.view import Condition, FleetView
from streams.fleet.wording import NAMED, counted, duration, failure, listed, short_runs

Severity = Literal["critical", "warning", "note"]
ORDER: tuple[Severity, ...] = ("critical", "warning", "note")
ABSENT_S = 30.0  # a worker that starts anew is there by then
STALLED_S = 120.0  # a busy worker has reported a window by then
DROPPED_SHARE = 0.01  # of all events: more dropped ones are a warning, and fail a run of `up`
LATELY_S = 600.0  # for which a refused message is a problem
ALARMS = 0.025  # of devices whose inputs have not drifted alarm: docs/benchmarks.md
GONE_S = 172_800.0  # a device without an agent that had no event for so long is named
ASKED_FOR = "metered"  # the reason of drops that an operator has chosen


@dataclass(frozen=True)
class Status:
    """What was found at one moment, `now_s` of the wall clock; past: it was read from a file, some
    time after that; labels: what the store says, if it was asked."""

    view: FleetView
    lag: Lag
    now_s: float
    past: bool = False
    labels: LabelDelay | None = None

    @cached_property
    def produced_per_s(self) -> float:
        return self.view.produced_per_s(self.now_s)

    @property
    def scored_per_s(self) -> float:
        return self.view.scored_per_s(self.now_s)

    @cached_property
    def conditions(self) -> dict[str, Condition]:
        """The one word for each device."""
        return {n: self.view.condition(s, self.now_s) for n, s in self.view.everyone.items()}

    @property
    def alarms(self) -> dict[str, str]:
        """The channel that has drifted most, by device, where the latest report alarms; the worst
        device first."""
        found = {name: each for name, each in self.view.drift.items() if each.alarm}
        order = sorted(found, key=lambda name: (-self.drifted(name), name))
        return {name: found[name].worst or "" for name in order}

    def drifted(self, device: str) -> float:
        """Return how far the channel of a device that has drifted most is off (PSI)."""
        report = self.view.drift.get(device)
        return max((each.psi for each in report.channels), default=0.0) if report else 0.0


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong, and what to do; `page` is where more is seen. since_us: since when,
    where that is known."""

    severity: Severity
    text: str
    advice: str = ""
    page: str = ""
    since_us: int | None = None

    @property
    def line(self) -> str:
        """All of it in one line."""
        since = f" since {moment(self.since_us)}" if self.since_us else ""
        return f"{self.severity}{since}: {self.text}{f'. {self.advice}' if self.advice else ''}"


def problems(status: Status, more: Iterable[Problem] = ()) -> list[Problem]:
    """Return what is wrong, and `more` that the caller knows, the worst first."""
    looks: tuple[Callable[[Status], Iterator[Problem]], ...] = (
        _workers, _truth, _devices, _drops, _letters, _release, _refusals, _learning, _drift,
        _topics,
    )  # fmt: skip
    found = [*more, *(problem for look in looks for problem in look(status))]
    return sorted(found, key=lambda problem: ORDER.index(problem.severity))


def _workers(status: Status) -> Iterator[Problem]:
    for line in retention_lines(status.lag):
        yield Problem("critical", line[:1].upper() + line[1:], "")
    lag, newest = status.lag, max(status.view.scored, default=0)
    waiting = f"{counted(lag.messages, 'message')} wait, the oldest for {duration(lag.waits_s)}"
    absent = lag.workers == 0 and lag.waits_s > ABSENT_S
    late = status.now_s - newest > STALLED_S and lag.waits_s > lag.open_s + STALLED_S
    if absent or late:
        yield Problem(
            "critical",
            f"No worker runs: {waiting}" if absent else f"No window is reported: {waiting}",
            "tidewheel worker starts one"
            if absent
            else f"Workers report one {duration(lag.open_s)} after its first event at the latest: "
            "look at their logs",
            since_us=newest * 1_000_000 or None,
        )


def _truth(status: Status) -> Iterator[Problem]:
    """What true labels say: a release that is wrong too often, and devices that it made worse."""
    stable = status.view.standing.stable
    if stable is not None and (wrong := status.view.truth.wrong(stable.model)) is not None:
        yield Problem(
            "critical" if wrong.share < 0.5 else "warning",
            wrong.text,
            "Look at its classes by device; more labels or another teacher let a run learn them",
            f"/devices/{wrong.device}",
        )
    found = status.view.worse
    for worse in found[:NAMED]:
        yield Problem(
            "warning",
            f"{worse.device} answers worse with {worse.after} than {worse.before}: {worse.text}",
            f"Its own labels may let it keep {worse.before} (Training.choice); for all devices: "
            "tidewheel models rollback",
            f"/devices/{worse.device}",
        )
    if len(found) > NAMED:
        more = listed(sorted({each.device for each in found[NAMED:]}))
        yield Problem("warning", f"So do {more}", "", "/fleet")


def _devices(status: Status) -> Iterator[Problem]:
    wrong: dict[str, list[DeviceState]] = {"error": [], "silent": []}
    for state in status.view.devices.values():
        if (what := status.conditions[state.device]) in wrong:
            wrong[what].append(state)
    if found := wrong["error"]:
        advice = f"{found[0].device} says: {found[0].error}"
        yield Problem("warning", f"{_named(found)} in error", advice, "/fleet?group=error")
    if found := wrong["silent"]:
        yield Problem(
            "warning",
            f"{_named(found)} silent",
            "Events wait on a silent device; check that it is on and reaches the broker. One that "
            "will not return leaves the fleet by `tidewheel edge forget`",
            "/fleet?group=silent",
            min(state.time_us for state in found),
        )
    gone_us = (status.now_s - GONE_S) * 1e6
    if gone := [each for each in status.view.producers.values() if each.time_us < gone_us]:
        first = min(gone, key=lambda each: each.time_us)
        of = counted(len(status.view.producers), "device")
        early = first.time_us < YEAR_1980_US < status.now_s * 1e6
        yield Problem(
            "warning" if early else "note",
            f"{len(gone):,} of {of} without an agent had no event in the last two days, "
            f"{first.device} for the longest time",
            "Event times before 1980 have a wrong unit: they are microseconds since 1970"
            if early
            else "Check what sends their events, if it is not history",
            "/fleet?sort=seen",
            first.time_us,
        )


def _named(states: Sequence[DeviceState]) -> str:
    names = listed([state.device for state in states])
    return f"{names} {'are' if len(states) > 1 else 'is'}"


def dropped(states: Iterable[DeviceState]) -> Counter[str]:
    """Return how many events were dropped by reason, without those that were to be."""
    found = sum((Counter(state.dropped) for state in states), Counter[str]())
    del found[ASKED_FOR]
    return found


def too_many_dropped(states: Collection[DeviceState]) -> bool:
    """Return whether more than DROPPED_SHARE of the events were dropped."""
    return dropped(states).total() > DROPPED_SHARE * sum(state.produced for state in states)


def listed_counts(counts: Counter[str]) -> str:
    """Return `20 spool-full, 3 old`."""
    return ", ".join(f"{count:,} {name}" for name, count in counts.most_common(NAMED))


def _drops(status: Status) -> Iterator[Problem]:
    states = status.view.epochs.values()
    if reasons := dropped(states):
        produced = sum(state.produced for state in states)
        yield Problem(
            "warning" if too_many_dropped(states) else "note",
            f"Devices have dropped {reasons.total():,} of {produced:,} events: "
            f"{listed_counts(reasons)}",
            "spool-full: give the spool more room, or the device a better connection",
            "/fleet?sort=dropped&descending=true",
        )


def _letters(status: Status) -> Iterator[Problem]:
    """Events that workers have refused lately: their devices count them as delivered."""
    since_us = (status.now_s - LATELY_S) * 1e6
    lately = [refused for refused in status.view.refused if refused.time_us > since_us]
    if lately:
        reasons = listed_counts(Counter(refused.reason for refused in lately))
        counts = Counter(refused.device for refused in lately if refused.device)
        devices = listed(sorted(counts, key=lambda device: (-counts[device], device)))
        yield Problem(
            "warning",
            f"Workers refused messages in the last {duration(LATELY_S)}: {reasons}"
            f"{f', of {devices}' if devices else ''}",
            "tidewheel dead-letters lists them; fix the cause, then send them again; `seq-reused` "
            "are to be sent in a new epoch",
            "/quality",
            max(refused.time_us for refused in lately),
        )


def _release(status: Status) -> Iterator[Problem]:
    standing, last = status.view.standing, next(reversed(status.view.decided), None)
    if (paused := standing.paused) is not None and standing.offered is not None:
        advice = f"{paused.reason}, signed by key {paused.key}. No run starts until it is resumed: "
        text = f"A person has paused the rollout of {standing.offered.model}"
        about = f"{advice}tidewheel models rollout TASK resume", "/releases", paused.time_us
        yield Problem("warning", text, *about)
    elif last is not None and last.kind == "held":
        advice = (
            f"{last.reason}. Windows that come can still decide it; tidewheel models promote "
            "serves it all the same, models rollback takes it back, and so does the next candidate"
        )
        text = f"The canary of {last.model} has no result"
        yield Problem("warning", text, advice, "/releases", last.time_us)
    if last is not None and last.kind == "rolled-back":
        text = f"{last.model} was rolled back"
        yield Problem("warning", text, last.reason, "/releases", last.time_us)


def _refusals(status: Status) -> Iterator[Problem]:
    standing = status.view.standing
    served = {ref.model for ref in (standing.stable, standing.offered) if ref is not None}
    refusing = [
        (state, model, reason)
        for state in status.view.devices.values()
        for model, reason in state.refused.items()
        if model in served and not reason.startswith(WITHDRAWN)
    ]
    if refusing:
        state, model, reason = refusing[0]
        text = f"{_named([state for state, _, _ in refusing])} not serving a released version"
        advice = f"{state.device} refuses {model}: {reason}"
        yield Problem("warning", text, advice, "/fleet?group=refusing")


def _learning(status: Status) -> Iterator[Problem]:
    last = status.view.last_finished
    if last is not None and (why := failure(last)):
        text = short_runs(f"Run {last.run} ended without a candidate")
        yield Problem("warning", text, short_runs(why), "/learning", last.time_us)
    judged = [event for event in status.view.rounds if event.kind in ("promoted", "rejected")]
    if judged and judged[-1].kind == "rejected":
        text = short_runs(f"The gate refused run {judged[-1].run}: {judged[-1].reason}")
        yield Problem("note", text, page="/learning", since_us=judged[-1].time_us)
    starts = [event for event in status.view.rounds if event.kind in ("postponed", "requested")]
    if starts and starts[-1].kind == "postponed" and status.view.present(status.now_s):
        text = short_runs(f"A run is held back: {starts[-1].reason}")
        yield Problem("note", text, page="/learning", since_us=starts[-1].time_us)


def _drift(status: Status) -> Iterator[Problem]:
    if alarms := status.alarms:
        names = listed([f"{device} ({channel})" for device, channel in alarms.items()])
        [(most, times)] = Counter(alarms.values()).most_common(1)
        names += f"; {most} most on {times:,} of them" if len(alarms) > NAMED else ""
        watched = counted(len(status.view.drift), "device")
        few = len(alarms) <= ALARMS * len(status.view.drift)
        yield Problem(
            "note" if few else "warning",
            f"Inputs drift on {len(alarms):,} of {watched}: {names}",
            "The controller starts a run if enough devices drift; look at their sensors",
            "/fleet?group=drifting",
        )


def _topics(status: Status) -> Iterator[Problem]:
    if unreadable := status.view.unreadable:
        yield Problem(
            "note",
            f"{counted(unreadable, 'message')} of the topics cannot be read",
            "Check what else writes to them: tidewheel tail shows each message",
        )
    unseen = status.view.unseen
    if many := unseen["many"]:
        yield Problem(
            "note",
            f"{counted(many, 'window report')} not counted: if more wait, the newest {MOST:,} are",
            "A tidewheel controller that keeps running counts all that come",
        )
    if deleted := unseen["deleted"]:
        yield Problem(
            "note",
            f"{counted(deleted, 'window report')} not counted: deleted before they were read",
            "Keep tidewheel controller running, or raise retention.ms of windows",
        )
