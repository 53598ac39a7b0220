"""Trying `Task.outcomes` on the first answers of a device, before anything runs."""

import itertools
import queue
import threading
from collections.abc import Iterator

import numpy as np

from streams.contract.task import Answered, Task
from streams.contract.task.parts import one_by_one
from streams.segments.findings import Finding
from streams.segments.segmentation import label_fits, segments_of
from streams.segments.survey import READINGS, own_line

WITHIN_S = 3.0  # a generator that waits for something outside is not waited for


def outcome_finding(task: Task, device: str, readings: int = READINGS) -> Finding | None:
    """Return what is wrong with the labels that `outcomes` gives for answers of zeros to the
    device's first `readings`; None if nothing is, or it takes longer than WITHIN_S. Readings that
    fail are the survey's finding."""
    if task.outcomes is None:
        return None
    found: queue.SimpleQueue[Finding | None] = queue.SimpleQueue()
    thread = threading.Thread(
        target=lambda: found.put(_tried(task, device, readings)), name="outcomes", daemon=True
    )
    thread.start()
    try:
        return found.get(timeout=WITHIN_S)
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
        yield Answered(begin_us, end_us, segment, outputs, seq)
