"""How often the teacher is right by class, over the fleet. Pure.

A device knows this from its own labelled events (`DeviceState.teacher_record`), of which there are
few of each class. What all devices say together goes out with a round's work (`Work.teacher`), and
each device decides by both how far to trust the teacher (edge_client/samples/trust.py). Reports are
untrusted: impossible counts are passed over, and no device counts with more than CAP events of a
class.
"""

from collections.abc import Iterable

import numpy as np

from streams.contract.documents import DeviceState
from streams.contract.task import Task

CAP = 50
SHRINK = 2.0  # events of the share over all classes beside those of one class


def shares(task: Task, states: Iterable[DeviceState]) -> list[float]:
    """Return the share of the teacher's answers that are right by class, (classes,) or (1,) for
    targets; empty if no device has an event with a true label and a teacher's."""
    classes = len(task.classes) or 1
    events, right = np.zeros(classes), np.zeros(classes)
    for state in states:
        for kind, (count, hits) in state.teacher_record.items():
            if state.task == task.name and 0 <= kind < classes and count > 0 and hits <= count:
                counted = min(count, CAP)
                events[kind] += counted
                right[kind] += counted * hits / count
    if not events.sum():
        return []
    overall = right.sum() / events.sum()
    found = (right + SHRINK * overall) / (events + SHRINK)
    return [float(share) for share in found.round(4)]
