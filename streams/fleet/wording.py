"""Events, decisions and figures in words, for people who watch.

Two or three digits, before → after, how many, and no field names. The same events have all of their
figures in `--json` output and in the registry.
"""

from collections.abc import Mapping, Sequence

from streams.contract.decisions import BY_HAND, Decision
from streams.contract.documents import RoundEvent
from streams.contract.task.metrics import named

NAMED = 3  # of many, in one line
EVALUATED = (("devices", "on devices"), ("held_out", "on held-out devices"))


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


def listed(names: Sequence[str], most: int = NAMED) -> str:
    """Return `d0, d1, d2 and 97 more`."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def before_after(before: float | None, after: float | None) -> str:
    """Return `0.66 → 0.78`; `0.66 → -` without a value after, `0.78` without one before."""
    if before is None:
        return "-" if after is None else digits(after)
    return f"{digits(before)} → {'-' if after is None else digits(after)}"


def evaluation(metrics: Mapping[str, float], metric: str) -> str:
    """Return what an evaluation found: the metric on devices and on held-out devices."""
    found = []
    for name, where in EVALUATED:
        count = int(metrics.get(f"{name}_segments", 0))
        if name in metrics and count:
            share = before_after(metrics.get(f"{name}_base"), metrics[name])
            found.append(f"{where} {share} ({count} segments)")
    return f"{named(metric)} {', '.join(found)}" if found else "nothing to evaluate on"


def failure(event: RoundEvent) -> str | None:
    """Return why a run ended without the gate's verdict; None for any other event."""
    judged = event.reason.startswith(("promoted", "rejected"))
    return None if event.kind != "finished" or judged else event.reason


def round_line(event: RoundEvent) -> str | None:
    """Return one line about a step of a run; None for a step that is too small to show."""
    where = f"round {event.round} of {event.rounds}" if event.rounds else f"round {event.round}"
    lines = {
        "asked": f"run requested by a person: {event.reason}",
        "requested": f"run {event.run} started: {event.reason}",
        "resumed": f"run {event.run} resumed: {event.reason}",
        "refused": f"{where}: update of {event.device} refused: {event.reason}",
        "failed": f"{where}: {event.device or 'run'} failed: {event.reason}",
        "aggregated": f"{where}: updates aggregated, {event.samples} samples",
        "evaluated": f"{where}: {evaluation(event.metrics, event.metric)}",
        "promoted": f"run {event.run} passed the gate, version {event.model}: {event.reason}",
        "rejected": f"run {event.run} refused by the gate: {event.reason}",
    }
    if why := failure(event):
        return f"run {event.run} ended without a candidate: {why}"
    return lines.get(event.kind)


DECISIONS = {
    "served": "all devices serve {model}",
    "candidate": "{model} passed the gate and waits for its canary",
    "stage": "{model} goes to stage {stage}",
    "held": "{model} is paused",
    "rolled-back": "{model} is rolled back",
    "dropped": "{model} is dropped",
    "teacher": "the workers use teacher {model}",
    "keys": "keys",
}


def decision_text(decision: Decision) -> str:
    """Return what a decision does, without its reason."""
    stage = decision.standing.stage
    if decision.kind == "stage" and decision.reason.startswith(BY_HAND):
        return f"{decision.model} is resumed in stage {stage}"  # people make no other stage
    return DECISIONS[decision.kind].format(model=decision.model, stage=stage)


def decision_line(decision: Decision) -> str:
    """Return one line about a decision."""
    return f"release: {decision_text(decision)}: {decision.reason}"
