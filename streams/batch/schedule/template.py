"""{start} and {end} in the words of a scheduled command. Pure.

    {start}            the interval's start in the schedule's zone: ISO 8601 with its offset
    {start:%Y-%m-%d}   the same as strftime writes it; the letters are those of DIRECTIVES
    {end}, {end:...}   its end
    {{ and }}          braces

Nothing else is looked up: what stands in braces is one of two names, and no attribute of anything.
"""

import re
from datetime import datetime

from streams.contract.errors import UsageError

DIRECTIVES = "YymdjFHIMSTfpzZaAbBUWuwGV%"
TOKEN = re.compile(r"\{\{|\}\}|\{(start|end)(?::([^{}]+))?\}|[{}]")
DIRECTIVE = re.compile(r"%(.?)", re.DOTALL)


def fill(text: str, start: datetime, end: datetime) -> str:
    """Return a word with the times of an interval; raise UsageError for other braces."""

    def filled(match: re.Match[str]) -> str:
        token, name, form = match[0], match[1], match[2]
        if token in ("{{", "}}"):
            return token[0]
        if name is None:
            raise UsageError(
                f"{text!r}: write {{start}}, {{end}} or {{start:%Y-%m-%d}}; a brace is written "
                "twice"
            )
        time = start if name == "start" else end
        return time.isoformat() if form is None else _formatted(time, form, text)

    return TOKEN.sub(filled, text)


def has_times(text: str) -> bool:
    """Return whether a word differs from interval to interval."""
    return any(match[1] for match in TOKEN.finditer(text))


def _formatted(time: datetime, form: str, text: str) -> str:
    for directive in DIRECTIVE.findall(form):
        if not directive or directive not in DIRECTIVES:
            raise UsageError(f"{text!r}: %{directive} is none of %{' %'.join(DIRECTIVES)}")
    return time.strftime(form)
