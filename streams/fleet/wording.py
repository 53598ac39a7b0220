"""Events, decisions and figures in words, for people who watch.

Two or three digits, before → after, how many, and no field names. The same events have all of their
figures in `--json` output and in the registry.
"""

import re
from collections.abc import Mapping, Sequence

from streams.contract.decisions import MANUAL, SIGNED_AGAIN, Decision
from streams.contract.documents import RoundEvent
from streams.contract.task.metrics import named

NAMED = 3  # of many, in one line
EVALUATED = (("devices", "on devices"), ("held_out", "on held-out devices"))
AUDIT = "audit segments (not used for any decision)"
RUN = re.compile(r"(?<!key )\b\d{9,14}(\d{6})\b")  # Flower's number of a run; a key has 16 signs


def digits(value: float) -> str:
    """Return a share with two digits; of a figure in another unit at least three digits."""
    if value and not 0.1 <= abs(value) < 10:
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{value:.2f}"


def share(value: float | None, of: int = 0) -> str:
    """Return `0.66 (120)`: a figure and of how many; `-` without one."""
    if value is None:
        return "-"
    return f"{digits(value)} ({of})" if of else digits(value)


def counted(count: int, one: str, many: str = "") -> str:
    """Return `1 run`, `2,000 runs`; many: where it is not `one` and an s."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def duration(seconds: float) -> str:
    """Return `25 s`, `4 min`, `3 h` or `5 days`."""
    for limit, unit_s, unit in ((100, 1, "s"), (6000, 60, "min"), (172_800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / unit_s:.0f} {unit}"
    return f"{seconds / 86_400:.0f} days"


def listed(names: Sequence[str], most: int = NAMED) -> str:
    """Return `d0, d1, d2 and 97 more`."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def before_after(before: float | None, after: float | None) -> str:
    """Return `0.66 → 0.78`; `0.66 → -` without a value after, `0.78` without one before."""
    if before is None:
        return "-" if after is None else digits(after)
    return f"{digits(before)} → {'-' if after is None else digits(after)}"


def short_runs(text: str) -> str:
    """Return a text with the last six digits of each run's number; commands take the whole one,
    which is in JSON."""
    return RUN.sub(r"\1", text)


def evaluation(metrics: Mapping[str, float], metric: str) -> str:
    """Return what an evaluation found: the metric on devices and on held-out devices."""
    found = []
    for name, where in EVALUATED:
        count = int(metrics.get(f"{name}_segments", 0))
        if name in metrics and count:
            share = before_after(metrics.get(f"{name}_base"), metrics[name])
            found.append(f"{where} {share} ({counted(count, 'segment')})")
    return f"{named(metric)} {', '.join(found)}" if found else "nothing to evaluate on"


def failure(event: RoundEvent) -> str | None:
    """Return why a run ended without the gate's verdict; None for any other event."""
    judged = event.reason.startswith(("promoted", "rejected"))
    return None if event.kind != "finished" or judged else event.reason


def counted_as(event: RoundEvent) -> str:
    """Return what an event counts as: its kind, and after a colon how a run ended, why an update
    was refused, or that a device has failed."""
    why, more = event.reason.partition(":")[0][:40], ""
    if event.kind == "finished":
        more = why if why in ("promoted", "rejected") else "failed"
    elif event.kind == "refused":
        more = why
    elif event.kind == "failed" and event.device:
        more = "device"
    return f"{event.kind}:{more}"


def round_line(event: RoundEvent) -> str | None:
    """Return one line about a step of a run; None for a step that is too small to show. Why a run
    passed the gate is in the line of its release."""
    where = _round(event)
    failed = where if event.round else f"run {event.run} failed"  # a round may go on
    failed = f"{where}: {event.device} failed" if event.device else failed
    lines = {
        "asked": f"run requested by a person: {event.reason}",
        "postponed": f"a run is held back: {event.reason}",
        "requested": f"run {event.run} started: {event.reason}",
        "resumed": f"run {event.run} resumed: {event.reason}",
        "invited": f"{where}: {event.reason}",
        "refused": f"{where}: update of {event.device} refused: {event.reason}",
        "failed": f"{failed}: {event.reason}",
        "aggregated": f"{where}: updates aggregated, {counted(event.samples, 'sample')}",
        "evaluated": f"{where}: {evaluation(event.metrics, event.metric)}",
        "promoted": f"run {event.run} passed the gate, version {event.model}",
        "rejected": f"run {event.run} refused by the gate: {event.reason}",
    }
    if why := failure(event):
        return short_runs(f"run {event.run} ended without a candidate: {why}")
    line = lines.get(event.kind)
    return None if line is None else short_runs(line)


def _round(event: RoundEvent) -> str:
    return f"round {event.round} of {event.rounds}" if event.rounds else f"round {event.round}"


PROGRESS = {
    "requested": "requested, starting",
    "resumed": "resumed, starting",
    "invited": "{joined:.0f} of {invited:.0f} devices joined",
    "started": "devices train",
    "admitted": "updates arrive",
    "refused": "updates arrive",
    "failed": "updates arrive",
    "aggregated": "updates aggregated",
    "evaluated": "candidate evaluated",
    "promoted": "candidate passed the gate",
    "rejected": "candidate refused by the gate",
}


def run_progress(run: Sequence[RoundEvent]) -> str | None:
    """Return what a run does now, of its events; None where it has ended."""
    if not run or run[-1].kind == "finished":
        return None
    last = run[-1]
    counts = {"joined": 0.0, "invited": 0.0, **last.metrics}
    text = PROGRESS.get(last.kind, last.kind).format(**counts)
    return f"{_round(last)}, {text}" if last.round else text


DECISIONS = {
    "served": "all devices serve {model}",
    "candidate": "{model} passed the gate and waits for its canary",
    "stage": "{model} goes to stage {stage}",
    "held": "the canary of {model} has no result",
    "rolled-back": "{model} is rolled back",
    "dropped": "{model} is dropped",
    "teacher": "the workers use teacher {model}",
    "keys": "keys",
}


def decision_text(decision: Decision) -> str:
    """Return what a decision does, without its reason."""
    stage = decision.standing.stage
    if decision.kind == "stage" and decision.reason.startswith(MANUAL):
        return f"{decision.model} is resumed in stage {stage}"  # people make no other stage
    if decision.kind == "held" and decision.standing.paused is not None:
        return f"{decision.model} is paused"
    if decision.reason.startswith(SIGNED_AGAIN):
        return f"all devices serve {decision.model}, the same model under another key"
    return DECISIONS[decision.kind].format(model=decision.model, stage=stage)


def decision_line(decision: Decision) -> str:
    """Return one line about a decision."""
    return short_runs(f"release: {decision_text(decision)}: {decision.reason}")
