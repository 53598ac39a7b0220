"""Device metrics: how devices evaluate a candidate compared with the version that they serve.

They are untrusted: impossible metrics count as missing, and no device counts with many more rows
than the others. Names and meaning are defined in streams.contract.work. A device that serves
another version than the run's base reports only `evaluated` and `correct`.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from federation.admission import MAX_SAMPLES, most_claimed
from federation.evaluation import paired
from federation.evaluation.accuracy import DEVICE_CAP, LARGEST
from federation.evaluation.paired import Paired
from federation.evaluation.promotion_gate import Comparison, GateRules, Rows
from streams.contract.task import Task
from streams.contract.task.metrics import counts_rows, metric_of
from streams.contract.work import COMPARED, CONFUSED, METRIC, METRIC_BASE, class_prefix


@dataclass(frozen=True)
class DeviceResult:
    """One device's comparison; `value` is the metric of the served version and of the candidate,
    None where the task's is accuracy, which `rows` tell."""

    rows: Paired
    cohorts: Mapping[str, Paired] = field(default_factory=dict)
    value: tuple[float, float] | None = None


def read(task: Task, metrics: Mapping[str, float], prefix: str = "") -> DeviceResult | None:
    """Return one device's metrics, those with a prefix, capped; None if they are missing or
    impossible. Classes must cover all rows or be absent."""
    metrics = {
        name.removeprefix(prefix): found
        for name, found in metrics.items()
        if name.startswith(prefix)
    }
    rows = _paired(metrics, "")
    if rows is None or not rows.n:
        return None
    classes: dict[str, Paired] = {}
    for index, name in enumerate(task.classes):
        prefix = class_prefix(index)
        if any(prefix + part in metrics for part in (*COMPARED, *CONFUSED)):
            found = _paired(metrics, prefix)
            if found is None:
                return None
            classes[f"class {name}"] = found
    mistakes = rows.n - rows.base, rows.n - rows.candidate
    if classes and sum(classes.values(), Paired()) != replace(
        rows, base_false=mistakes[0], false=mistakes[1]
    ):
        return None
    value = None
    if not counts_rows(task):
        value = metrics.get(METRIC_BASE, math.nan), metrics.get(METRIC, math.nan)
        if not all(abs(each) <= LARGEST for each in value):  # nor NaN
            return None
    return _scaled(DeviceResult(rows, classes, value), DEVICE_CAP)


def most_rows(found: Mapping[str, DeviceResult]) -> int:
    """Return with how many rows one of the devices counts at most (`most_claimed`). As many as the
    gate needs to decide anything always count: else a device would be no evidence beside others
    that have hardly any rows."""
    rows = [each.rows.n for each in found.values()]
    return max(int(most_claimed(rows)), GateRules.minimum) if rows else DEVICE_CAP


def limited(found: Mapping[str, DeviceResult]) -> dict[str, DeviceResult]:
    """Return the devices' metrics, none of more rows than count."""
    most = most_rows(found)
    return {name: _scaled(each, most) for name, each in found.items()}


def pool(task: Task, found: Mapping[str, DeviceResult]) -> Comparison:
    """Return all devices' metrics combined; each group of devices is a cohort, as each class is."""
    members: dict[str, list[DeviceResult]] = defaultdict(list)
    groups = {device.name: device.group for device in task.devices() if device.group}
    classes: dict[str, Paired] = defaultdict(Paired)
    for device, comparison in found.items():
        for name, rows in comparison.cohorts.items():
            classes[name] += _cluster(rows)
        if device in groups:
            members[f"group {groups[device]}"].append(comparison)
    together = {name: _together(task, parts) for name, parts in members.items()}
    return Comparison(_together(task, list(found.values())), {**classes, **together})


def _together(task: Task, parts: Sequence[DeviceResult]) -> Rows:
    if counts_rows(task):
        return sum((_cluster(part.rows) for part in parts), Paired())
    metric = metric_of(task)
    if metric.name in paired.OF_CLASSES and all(part.cohorts for part in parts) and parts:
        names = [f"class {name}" for name in task.classes]
        counts = [[part.cohorts.get(name, Paired()) for name in names] for part in parts]
        return paired.pool_classes(metric, counts, sum((part.rows for part in parts), Paired()))
    values = [(part.rows.n, *part.value) for part in parts if part.value is not None]
    return paired.pool(metric, values)


def _cluster(rows: Paired) -> Paired:
    """Return the rows of one device as one cluster."""
    net = rows.gained - rows.lost
    return replace(rows, down=max(0, -net), squares=net**2)


def _paired(metrics: Mapping[str, float], prefix: str) -> Paired | None:
    names = (*COMPARED, *CONFUSED) if prefix else COMPARED
    values = [metrics.get(prefix + name, -1.0) for name in names]
    if not all(0 <= value <= MAX_SAMPLES and value == int(value) for value in values):
        return None
    n, correct, base, gained, lost, *false = (int(value) for value in values)
    sound = base + gained - lost == correct and lost <= base and gained <= n - base
    return Paired(n, base, gained, lost, *false) if sound else None


def _scaled(found: DeviceResult, most: int) -> DeviceResult:
    """Return a device's metrics as of `most` rows, if it has more."""
    of = found.rows.n
    if of <= most:
        return found
    parts = {name: _part(rows, most, of) for name, rows in found.cohorts.items()}
    return replace(found, rows=_part(found.rows, most, of), cohorts=parts)


def _part(rows: Paired, most: int, of: int) -> Paired:
    """Return some of a device's `of` rows, as many as it has of `most`. Its four kinds of rows are
    rounded by their largest remainders, so that they stay possible and few rows do not vanish."""
    n = rows.n * most // of
    kinds = {
        "lost": rows.lost,
        "right": rows.base - rows.lost,
        "wrong": rows.n - rows.base - rows.gained,
        "gained": rows.gained,
    }
    left = {name: count * n % max(rows.n, 1) for name, count in kinds.items()}
    count = {name: count * n // max(rows.n, 1) for name, count in kinds.items()}
    for name in sorted(left, key=left.__getitem__, reverse=True)[: n - sum(count.values())]:
        count[name] += 1
    false = rows.base_false * most // of, rows.false * most // of
    return Paired(n, count["right"] + count["lost"], count["gained"], count["lost"], *false)
