"""Parsing of true labels from a person or another program."""

import json

from streams.contract.documents import LATEST_US
from streams.contract.errors import UsageError
from streams.contract.task import Task
from streams.contract.work import Label
from streams.segments.segmentation import label_fits


def parse_line(task: Task, number: int, line: str) -> Label:
    """Parse {"from_us": first, "to_us": last, "label": class name, index or values}.

    `to_us` is optional. Raises UsageError with the line number.
    """
    try:
        found = json.loads(line)
        first = int(found["from_us"])
        return parse_label(task, first, int(found.get("to_us", first)), found["label"])
    except UsageError as exc:
        raise UsageError(f"line {number}: {exc}") from exc
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
        raise UsageError(
            f'line {number}: write it as {{"from_us": 1, "to_us": 2, "label": "..."}}'
        ) from exc


def parse_label(task: Task, first_us: int, last_us: int, value: object) -> Label:
    """Return a label from a class name or index, or target values (a list or "1.5,2.0")."""
    if not 0 <= first_us <= last_us:
        raise UsageError(f"a label from {first_us} to {last_us} us covers no time")
    if last_us > LATEST_US:
        raise UsageError(f"{last_us} us is after the year 3100")
    values = _values(task, value)
    if values is None or not label_fits(task, values):
        wanted = ", ".join(task.classes) or f"a value for each of {', '.join(task.targets)}"
        raise UsageError(f"{value!r} is not a label of this task: {wanted}")
    return Label(first_us=first_us, last_us=last_us, label=values)


def _values(task: Task, value: object) -> list[float] | None:
    if isinstance(value, str) and value in task.classes:
        return [float(task.classes.index(value))]
    parts = value.split(",") if isinstance(value, str) else value
    try:
        return [float(part) for part in (parts if isinstance(parts, list) else [parts])]  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
