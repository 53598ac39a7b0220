"""What is wrong, the worst first, with what to do. Pure."""

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Literal

from pydantic import BaseModel

from compose.dashboard.model.observed import Observed
from compose.reports.lag import retention_lines
from streams.contract.decisions import WITHDRAWN
from streams.contract.documents import DeviceState
from streams.fleet.wording import NAMED, counted, failure, listed, short_runs

Severity = Literal["critical", "warning", "note"]
ORDER: tuple[Severity, ...] = ("critical", "warning", "note")
STALLED_S = 120.0
ASKED_FOR = "metered"  # the reason of drops that an operator has chosen


class Problem(BaseModel):
    """One thing that is wrong, and what to do; `page` is where more is seen. since_us: since when,
    where that is known."""

    severity: Severity
    text: str
    advice: str
    page: str = "/"
    since_us: int | None = None


def problems(seen: Observed) -> list[Problem]:
    """Return what is wrong, the worst first."""
    looks: tuple[Callable[[Observed], Iterator[Problem]], ...] = (
        _link, _workers, _devices, _drops, _release, _learning, _drift, _letters, _unread,
    )  # fmt: skip
    found = [problem for look in looks for problem in look(seen)]
    return sorted(found, key=lambda problem: ORDER.index(problem.severity))


def _link(seen: Observed) -> Iterator[Problem]:
    link = seen.link
    if link.trouble:
        yield Problem(
            severity="critical" if link.why else "note",
            text=link.trouble,
            advice=f"{link.why or 'It takes a moment'}. Reconnecting automatically",
            since_us=int(link.since_s * 1e6) if link.why and link.since_s else None,
        )


def _workers(seen: Observed) -> Iterator[Problem]:
    status = seen.status
    for line in retention_lines(seen.lag):
        yield Problem(severity="critical", text=line[:1].upper() + line[1:], advice="")
    newest = max(seen.view.scored, default=0)
    if status.produced_per_s > 0 and seen.lag.messages and seen.as_of_s - newest > STALLED_S:
        yield Problem(
            severity="critical",
            text=f"No window was reported for {STALLED_S:.0f} s, and "
            f"{counted(seen.lag.messages, 'message')} wait for a worker",
            advice="Look at the worker's log; start one with tidewheel worker",
            since_us=newest * 1_000_000 or None,
        )


def _devices(seen: Observed) -> Iterator[Problem]:
    wrong: dict[str, list[DeviceState]] = {"error": [], "silent": []}
    for state in seen.view.devices.values():
        if (what := seen.conditions[state.device]) in wrong:
            wrong[what].append(state)
    if found := wrong["error"]:
        first = found[0]
        yield Problem(
            severity="warning",
            text=f"{_devices_named(found)} in error",
            advice=f"{first.device} says: {first.error}",
            page="/fleet?group=error",
        )
    if found := wrong["silent"]:
        yield Problem(
            severity="warning",
            text=f"{_devices_named(found)} silent",
            advice="Events wait on a silent device; check that it is on and reaches the broker",
            page="/fleet?group=silent",
            since_us=min(state.time_us for state in found),
        )


def _devices_named(states: list[DeviceState]) -> str:
    names = listed([state.device for state in states])
    return f"{names} {'are' if len(states) > 1 else 'is'}"


def _drops(seen: Observed) -> Iterator[Problem]:
    reasons: Counter[str] = Counter()
    for state in seen.view.devices.values():
        reasons.update(state.dropped)
    del reasons[ASKED_FOR]
    total = sum(reasons.values())
    produced = sum(state.produced for state in seen.view.devices.values())
    if not total:
        return
    text = ", ".join(f"{count:,} {reason}" for reason, count in reasons.most_common(NAMED))
    yield Problem(
        severity="warning" if total > produced / 100 else "note",
        text=f"Devices have dropped {total:,} of {produced:,} events: {text}",
        advice="spool-full: give the spool more room, or the device a better connection",
        page="/fleet?sort=dropped",
    )


def _release(seen: Observed) -> Iterator[Problem]:
    view, standing = seen.view, seen.view.standing
    last = view.decisions[max(view.decisions)] if view.decisions else None
    if (paused := standing.paused) is not None and standing.offered is not None:
        yield Problem(
            severity="warning",
            text=f"A person has paused the rollout of {standing.offered.model}",
            advice=f"{paused.reason}, signed by key {paused.key}. No run starts until it is "
            "resumed: tidewheel models resume",
            page="/releases",
            since_us=paused.time_us,
        )
    elif last is not None and last.kind == "held":
        yield Problem(
            severity="warning",
            text=f"The rollout of {last.model} is paused",
            advice=last.reason,
            page="/releases",
            since_us=last.time_us,
        )
    if last is not None and last.kind == "rolled-back":
        yield Problem(
            severity="warning",
            text=f"{last.model} was rolled back",
            advice=last.reason,
            page="/releases",
            since_us=last.time_us,
        )
    served = {ref.model for ref in (standing.stable, standing.offered) if ref is not None}
    refusing = [
        (state, model, reason)
        for state in view.devices.values()
        for model, reason in state.refused.items()
        if model in served and not reason.startswith(WITHDRAWN)
    ]
    if refusing:
        state, model, reason = refusing[0]
        names = _devices_named([state for state, _, _ in refusing])
        yield Problem(
            severity="warning",
            text=f"{names} not serving a released version",
            advice=f"{state.device} refuses {model}: {reason}",
            page="/fleet?group=refusing",
        )


def _learning(seen: Observed) -> Iterator[Problem]:
    last = seen.view.last_finished
    if last is not None and (why := failure(last)):
        yield Problem(
            severity="warning",
            text=short_runs(f"Run {last.run} ended without a candidate"),
            advice=short_runs(why),
            page="/learning",
            since_us=last.time_us,
        )


def _drift(seen: Observed) -> Iterator[Problem]:
    alarms = seen.status.alarms
    if alarms:
        names = listed([f"{name} ({channel})" for name, channel in alarms.items()])
        yield Problem(
            severity="warning",
            text=f"Inputs drift on {len(alarms)} of {counted(len(seen.view.drift), 'device')}: "
            f"{names}",
            advice="The controller starts a run if enough devices drift; look at their sensors",
            page="/fleet?group=drifting",
        )


def _letters(seen: Observed) -> Iterator[Problem]:
    if counts := seen.beside.letters.counts:
        text = ", ".join(f"{count} {reason}" for reason, count in counts.most_common(NAMED))
        yield Problem(
            severity="note",
            text=f"Dead letters: {text}",
            advice="Fix the cause, then send them again",
            page="/quality",
        )


def _unread(seen: Observed) -> Iterator[Problem]:
    if seen.view.unreadable:
        yield Problem(
            severity="note",
            text=f"{counted(seen.view.unreadable, 'message')} of the topics cannot be read",
            advice="Check what else writes to them: tidewheel tail shows each message",
        )
    if seen.view.unseen:
        yield Problem(
            severity="note",
            text=f"{counted(seen.view.unseen, 'window report')} not counted",
            advice="They were deleted, or too many, before the console could read them",
        )
