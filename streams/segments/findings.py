"""What is wrong with a task's data, from surveys of its devices, and with its `outcomes`, tried on
the first answers of a device: one line of advice each."""

import itertools
import queue
import re
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from streams.contract.errors import own_line
from streams.contract.task import Answered, Count, Task
from streams.contract.task.metrics import retrain_limit, window_metric
from streams.contract.task.parts import one_by_one
from streams.segments.segmentation import OUT_OF_ORDER, label_fits, segments_of
from streams.segments.survey import READINGS, Survey

SKIPPED_SHARE = 0.01
RATE_OFF = 0.2  # of the stated period
FEW_SEGMENTS = 5  # of a window
GOOD_SHARE = 0.8  # of the Brier distance of chance: a good model of a rare class may reach no less
SHOWN = 3  # devices that a finding names
DAY_US = 86_400_000_000
WITHIN_S = 3.0  # a generator that waits for something outside is not waited for

CAUSES = {  # why a reading breaks a segment, and what to do
    "gap": (
        "more time between two readings than Segment.max_gap_s (2.5 sample periods by default)",
        "raise max_gap_s, or correct rate_hz",
    ),
    "backwards": ("times that go back", "sort the readings"),
    OUT_OF_ORDER: ("times that go back", "sort the readings"),
    "width": (
        "another number of values than the task has channels",
        "yield one value for each channel but those of Time",
    ),
    "not-finite": (
        "values that are NaN, infinite or not of their channel",
        "fill them, or leave them out",
    ),
}


@dataclass(frozen=True)
class Finding:
    """`where` is a device, a role or a field of the task."""

    level: Literal["error", "warning"]
    where: str
    text: str
    advice: str


def findings(task: Task, surveys: Sequence[Survey], now_us: int | None = None) -> list[Finding]:
    """Return errors, which cannot work, before warnings. `now_us`: wall clock, against which dates
    of live readings are held; None: they are not."""
    found = _together([finding for one in surveys for finding in _of_device(task, one, now_us)])
    found += [*_of_roles(task, surveys), *_of_task(task, surveys)]
    return sorted(found, key=lambda finding: finding.level != "error")


def _together(found: Sequence[Finding]) -> list[Finding]:
    """One finding of all devices that have it, whose counts may differ."""
    same: dict[Finding, list[Finding]] = {}
    for one in found:
        text = re.sub(r"\d+", "n", one.text) if one.text[0].isdigit() else one.text
        same.setdefault(replace(one, where="", text=text), []).append(one)
    return [_of_all(each) for each in same.values()]


def _of_all(found: Sequence[Finding]) -> Finding:
    text = found[0].text
    if any(one.text != text for one in found):
        text = "up to " + max((o.text for o in found), key=lambda each: int(each.split()[0]))
    return replace(found[0], where=_names([one.where for one in found]), text=text)


def _names(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def no_labels(task: Task, surveys: Sequence[Survey]) -> str:
    """Return why devices have no labelled segment, for an error message."""
    for one in surveys:
        first = next((f for f in _of_device(task, one) if f.level == "error"), None)
        if first is not None:
            return f"{first.where}: {first.text}: {first.advice}"
    odd = next((one.unfit for one in surveys if one.unfit is not None), None)
    if odd is not None and not any(one.labels for one in surveys):
        return f"label {odd} is not one of the task's labels: {_labels_are(task)}"
    if not any(one.labels for one in surveys):
        return "no reading has a label: yield Reading(time_us, values, label)"
    share = task.segment.label_share
    return f"no segment has one label on {share:.0%} of its readings: lower segment.label_share"


def _of_device(task: Task, one: Survey, now_us: int | None = None) -> list[Finding]:
    if one.error is not None:
        return [Finding("error", one.device, one.error, "fix `readings` in the task file")]
    if not one.readings and one.read_s is None:
        return [Finding("error", one.device, "readings() yields nothing", "yield Reading(...)")]
    found = []
    if not one.segments:
        found.append(_no_segment(task, one))
    breaking = {why: n for why, n in one.skipped.items() if why != OUT_OF_ORDER}
    broken, back = sum(breaking.values()), "backwards" in breaking  # time never goes back
    if one.segments and (broken > SKIPPED_SHARE * one.readings or back):
        reasons = ", ".join(f"{why} {n}" for why, n in sorted(breaking.items()))
        worst = "backwards" if back else max(breaking, key=lambda why: breaking[why])
        text = f"{broken} of {one.readings} readings break a segment ({reasons})"
        found.append(Finding("warning", one.device, text, "; ".join(CAUSES.get(worst, (worst,)))))
    if one.segments and (late := one.skipped.get(OUT_OF_ORDER)):
        text = f"{late} of {one.readings} readings {'is' if late == 1 else 'are'} out of order"
        found.append(Finding("warning", one.device, text, "; ".join(CAUSES[OUT_OF_ORDER])))
    if one.unfit is not None:
        text = f"label {one.unfit} is not one of the task's labels"
        found.append(Finding("error", one.device, text, _labels_are(task)))
    if (unit := _unit(one)) is not None:
        text = f"time_us looks like {unit}"
        found.append(Finding("error", one.device, text, "it is microseconds: multiply"))
    elif task.rate_hz and one.period_s and abs(one.period_s * task.rate_hz - 1) > RATE_OFF:
        text = f"a reading every {one.period_s:g} s, rate_hz={task.rate_hz:g} says otherwise"
        found.append(Finding("warning", one.device, text, f"set rate_hz={1 / one.period_s:g}"))
    if task.rate_hz and one.repeated > SKIPPED_SHARE * one.readings:
        text = f"{one.repeated} of {one.readings} readings have the time of the one before"
        advice = "is each sent twice? Leave one out, or a segment is of less time than it should be"
        found.append(Finding("warning", one.device, text, advice))
    live = task.source == "live" and one.role == "fleet"  # the others' are recordings
    if live and one.readings and not one.dated:
        text = "live readings that are not dated"
        advice = "give time_us since 1970 (UTC), or say source='recorded'"
        found.append(Finding("error", one.device, text, advice))
    elif live and (days := _days_ago(one, now_us)) > 1:
        text = f"live readings that begin {days:,.0f} days ago"
        advice = "a recording is source='recorded': it is paced and repeated"
        found.append(Finding("warning", one.device, text, advice))
    return found


def _labels_are(task: Task) -> str:
    if task.classes:
        return f"labels are 0 to {len(task.classes) - 1}"
    return f"labels are {len(task.targets)} numbers"


def _days_ago(one: Survey, now_us: int | None) -> float:
    known = now_us is not None and one.first_us is not None
    return (now_us - one.first_us) / DAY_US if known else 0.0  # type: ignore[operator]


def _unit(one: Survey) -> str | None:
    """The unit that dates of the last years would have; None where times are none, or right."""
    for unit, factor in (("seconds", 1e6), ("milliseconds", 1e3)):
        if one.first_us is not None and 1e15 <= one.first_us * factor < 3e15:
            return unit
    return None


def _no_segment(task: Task, one: Survey) -> Finding:
    if one.read_s is not None and not one.skipped:
        text = f"{one.readings} readings in {one.read_s:g} s make no segment"
        advice = (
            f"check the sensor if that is too few; a segment is {task.segment.samples} readings"
        )
        return Finding("warning", one.device, text, advice)
    if not one.skipped:
        text = f"{one.readings} readings make no segment of {task.segment.samples}"
        return Finding("error", one.device, text, "yield more readings, or make segments shorter")
    worst = max(one.skipped, key=lambda why: one.skipped[why])
    cause, advice = CAUSES[worst]
    text = f"no segment: {one.skipped[worst]} of {one.readings} readings have {cause}"
    if worst == "gap" and one.period_s:
        advice = f"readings come every {one.period_s:g} s: set rate_hz={1 / one.period_s:g}"
    return Finding("error", one.device, text, advice)


def _of_roles(task: Task, surveys: Sequence[Survey]) -> list[Finding]:
    found = []
    needed = {
        "fleet": "nobody answers: give some devices the role 'fleet'",
        "pilot": "the first model has nothing to learn from: give a device the role 'pilot'",
    }
    for role, text in needed.items():
        if not any(one.role == role for one in surveys):
            found.append(Finding("error", role, f"no device has the role {role!r}", text))
    pilots = [one for one in surveys if one.role == "pilot"]
    broken = {f.where for one in pilots for f in _of_device(task, one) if f.level == "error"}
    given = not task.learns or bool(task.first_model)  # then pilots need no labels
    if pilots and not (broken or given or any(one.labelled for one in pilots)):
        text = "no device of role 'pilot' has a labelled segment"
        found.append(Finding("error", "pilot", text, no_labels(task, pilots)))
    if not any(one.role == "held-out" for one in surveys):
        text = "no device has the role 'held-out'"
        advice = "candidates are then judged by the devices alone: hold one or two out"
        found.append(Finding("warning", "held-out", text, advice))
    return found


def _of_task(task: Task, surveys: Sequence[Survey]) -> list[Finding]:
    found = []
    counts = sum((Counter(one.labels) for one in surveys), Counter[str]())
    missing = [name for name in task.classes if not counts[name]]
    if counts and missing:
        text = f"no label of {', '.join(missing)} in the readings that were looked at"
        found.append(Finding("warning", "classes", text, "later readings may have it"))
    found += _of_retrain(task, counts)
    found += _of_fleet(task, [one for one in surveys if one.role == "fleet"])
    gap_s, silent_s = getattr(task.window, "gap_s", 0.0), task.idle_close_s
    if task.source == "live" and gap_s > silent_s:
        text = f"{silent_s:g} s of silence close a session, whose gap_s is {gap_s:g} s"
        advice = "later events are revisions, scored apart: set idle_close_s to gap_s or more"
        found.append(Finding("warning", "idle_close_s", text, advice))
    rare = max((one.period_s or 0.0 for one in surveys), default=0.0)
    if task.source == "live" and isinstance(task.window, Count) and rare > silent_s:
        text = f"{silent_s:g} s of silence close a window, readings come every {rare:g} s"
        advice = "windows hold fewer events than Count says: set idle_close_s above that time"
        found.append(Finding("warning", "idle_close_s", text, advice))
    if task.rate_hz and task.segments_per_window < FEW_SEGMENTS:
        text = (
            f"a window of {task.window_us / 1e6:g} s holds {task.segments_per_window:.1f} segments"
        )
        found.append(Finding("warning", "window", text, "longer windows say more"))
    return found


def _of_fleet(task: Task, surveys: Sequence[Survey]) -> Iterator[Finding]:
    """Of the true labels that devices learn from."""
    if not task.learns or task.outcomes is not None or not any(one.segments for one in surveys):
        return
    share = task.training.label_share
    if not any(one.labelled for one in surveys):
        text, more = "no true label in the readings of the fleet that were looked at", ""
        if any(one.labels for one in surveys):
            most, more = f"{task.segment.label_share:.0%}", "lower Segment.label_share, "
            text = f"in no segment {most} of the readings have the same true label"
        advice = "without any a device learns in no round, as eight must show that a teacher knows "
        advice += f"more: {more}give the task `outcomes`, or use `tidewheel label import`"
        yield Finding("warning", "fleet", text, advice)
    elif task.source == "recorded" and share < 1:
        text = f"a device learns from {share:.0%} of its true labels and is measured on the others"
        advice = "training=Training(label_share=1.0) uses all"
        yield Finding("warning", "training.label_share", text, advice)


def _of_retrain(task: Task, counts: Counter[str]) -> Iterator[Finding]:
    """Of rare classes: whether a model that knows no more than their shares starts no run, or true
    labels may keep one due that is as good as any. With retrain=0 that is meant."""
    if window_metric(task) != "brier" or not counts:
        return
    chance = (1 - sum((count / counts.total()) ** 2 for count in counts.values())) / 2
    if chance <= (limit := retrain_limit(task)):
        text = (
            f"a model that only knows how frequent the classes are has a Brier distance of "
            f"{chance:.2g}, and no run starts below {limit:g}"
        )
        set_to = f"{chance / 2:.1g}" if task.outcomes is None else f"{0.9 * chance:.2g}"
        yield Finding("warning", "retrain", text, f"set retrain={set_to}")
    elif task.outcomes is not None and 0 < limit < GOOD_SHARE * chance:
        text = (
            f"a model that only knows how frequent the classes are has a Brier distance of "
            f"{chance:.2g} from true labels, a good one may have little less, and above {limit:g} "
            "a run stays due"
        )
        advice = f"set retrain={0.9 * chance:.2g}, or just above what a good model reaches"
        yield Finding("warning", "retrain", text, advice)


def outcome_finding(
    task: Task, device: str, readings: int = READINGS, within_s: float = WITHIN_S
) -> Finding | None:
    """Return what is wrong with the labels that `outcomes` gives for answers of zeros to the
    device's first `readings`; None if nothing is, or it takes longer than `within_s`. Readings that
    fail are the survey's finding."""
    if task.outcomes is None:
        return None
    found: queue.SimpleQueue[Finding | None] = queue.SimpleQueue()
    thread = threading.Thread(
        target=lambda: found.put(_tried(task, device, readings)), name="outcomes", daemon=True
    )
    thread.start()
    try:
        return found.get(timeout=within_s)
    except queue.Empty:
        return None


def _tried(task: Task, device: str, readings: int) -> Finding | None:
    assert task.outcomes is not None
    count = 0
    try:
        for outcome in task.outcomes(device, _answers(task, device, readings)):
            count += 1
            if not label_fits(task, outcome.label):
                text = f"outcomes() yields label {outcome.label!r}, which is not one of the task's"
                text = f"{text[:200]} labels"
                return Finding("error", device, text, "yield a class index, or a value a target")
    except Exception as exc:  # the user's code may raise anything
        text = (
            f"outcomes() fails: {type(exc).__name__}: {exc} (after {count} labels{own_line(exc)})"
        )
        return Finding("error", device, text, "fix `outcomes` in the task file")
    if count:
        return None
    text = f"outcomes() yields nothing for the answers to the first {readings} readings"
    return Finding("warning", device, text, "later readings may have one")


def _answers(task: Task, device: str, readings: int) -> Iterator[Answered]:
    outputs = np.zeros(task.outputs, np.float32)
    try:
        first = list(itertools.islice(one_by_one(task.readings(device)), readings))
    except Exception:  # named by the survey
        return
    for seq, (begin_us, end_us, segment, _) in enumerate(segments_of(first, task)):
        yield Answered(begin_us, end_us, segment, outputs, seq, begin_us)
