"""Text for a person: the console, one line, a time."""

import time

from rich.console import Console


def console(*, stderr: bool = False) -> Console:
    """The terminal's width, or enough for our tables where there is none."""
    found = Console(stderr=stderr)
    return found if found.is_terminal else Console(stderr=stderr, width=140)


def moment(time_us: int | None) -> str:
    """Local time for a person."""
    if time_us is None:
        return "-"
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(time_us / 1e6))


def say(text: str) -> None:
    """One line for a person, as it is."""
    console().print(text, markup=False, highlight=False, soft_wrap=True)
