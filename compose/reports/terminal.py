"""Output for a person: the console, a line, a time."""

import json
import math
import time
from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from streams.contract.documents import encoded

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


def console(*, stderr: bool = False) -> "Console":
    """Return a console with the terminal's width, or a width for our tables without a terminal."""
    from rich.console import Console  # here: it takes 2 MB of a device, which prints nothing

    found = Console(stderr=stderr)
    return found if found.is_terminal else Console(stderr=stderr, width=140)


def print_json(data: Any, to: "Console | None" = None) -> None:
    """Print data as JSON, documents in it too, as it is: colours and wrapping take seconds, and
    hundreds of megabytes, where there is much."""
    (to or console()).file.write(encoded(data, indent=2).decode() + "\n")


def json_line(row: Any) -> str:
    """Return a row as a line of JSON, which has no infinite number and no NaN: they are null. What
    JSON has no type for, as a time, is its text."""
    try:
        return json.dumps(row, default=str, allow_nan=False)
    except ValueError:
        return json.dumps(_finite(row), default=str)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def moment(time_us: int | None) -> str:
    """Return the local time for a person."""
    if time_us is None:
        return "-"
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(time_us / 1e6))


def say(text: str, *, stderr: bool = False) -> None:
    """Print one line unchanged."""
    console(stderr=stderr).print(text, markup=False, highlight=False, soft_wrap=True)


def table(
    title: str,
    columns: Iterable[str],
    rows: Iterable[Sequence[str]] = (),
    right: Collection[str] = (),
) -> "Table":
    """Return a table of texts, which are never markup; right: columns of numbers."""
    from rich.table import Table
    from rich.text import Text

    made = Table(title=title or None)
    for name in columns:
        made.add_column(Text(name), justify="right" if name in right else "left")
    for row in rows:
        made.add_row(*(Text(text) for text in row))
    return made
