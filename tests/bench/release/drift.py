"""How many windows it takes until a phone that is worn otherwise is found out."""

import numpy as np

from examples.drift.har_remounted import REMOUNTED
from federation.bootstrap.dataset import segments_of_device
from federation.bootstrap.drift_reference import accumulated, make_reference
from streams.drift.detector import compare
from streams.drift.reference import WINDOWS
from streams.tasks import hapt
from tests.bench.release.stage import Stage
from tests.bench.report import Results, Table


def drift(stage: Stage, results: Results) -> None:
    """On the recordings as they are, one after the other; and on those of everybody else."""
    task = stage.task

    def answers(n: int) -> np.ndarray:
        return np.zeros((n, task.outputs), np.float32)

    lab = [segments_of_device(task, name) for name in task.device_names("pilot", "lab")]
    frozen = make_reference(task, lab, [answers(len(one.times)) for one in lab])
    rows: list[list[str | float | int | None]] = []
    quiet, alarms = 0, 0
    for name in task.device_names("fleet", "held-out"):
        device = segments_of_device(task, name)
        counted = accumulated(task, frozen, device, answers(len(device.times)))
        found = [compare(frozen, counts, windows=WINDOWS).alarm for counts in counted]
        if name not in REMOUNTED:
            quiet, alarms = quiet + len(found), alarms + sum(found)
            continue
        starts = np.unique([task.window_start(int(t)) for t in device.times])
        moved = int((starts < _second_begins_us(name)).sum())
        first = next((i for i, alarm in enumerate(found) if alarm and i >= moved), None)
        before = sum(found[:moved])
        rows.append([name, moved, before, None if first is None else first - moved + 1])
    results.tables.append(
        Table(
            "A phone that is worn otherwise, until the alarm",
            "People whose later recordings have acc-y turned round; windows of "
            f"{task.window_s:.0f} s, the last {WINDOWS} of them judged together. Everybody else's "
            f"{quiet} windows had {alarms} alarms ({alarms / quiet:.1%}).",
            ["person", "windows before", "alarms in them", "windows until the first alarm"],
            rows,
        )
    )


def _second_begins_us(name: str) -> int:
    """As `har.readings` replays it."""
    parts = hapt.person(int(name.rsplit("-", 1)[1]))["recording"].astype(np.int64)
    row = int(np.flatnonzero(parts != parts[0])[0])
    return row * 20_000 + int(parts[row]) * 10_000_000
