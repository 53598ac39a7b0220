"""`tidewheel timeline`: what happened to a task's models, in lines or JSON."""

import json
import re
import time
from collections.abc import Iterable
from dataclasses import asdict

from rich.console import Console

from compose.reports.terminal import moment
from streams.contract.errors import UsageError
from streams.fleet.timeline import Entry

UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def seconds(text: str) -> float:
    """ "2h", "30m", "90s" or "7d" in seconds; UsageError."""
    found = re.fullmatch(r"(\d{1,6})([smhd])", text, re.ASCII)
    if found is None:
        raise UsageError(f"--since {text}: write it as 90s, 30m, 2h or 7d")
    return int(found[1]) * UNITS_S[found[2]]


def since(found: Iterable[Entry], ago_s: float | None, now_s: float | None = None) -> list[Entry]:
    """Those of the last `ago_s`; None: all."""
    if ago_s is None:
        return list(found)
    begin = ((time.time() if now_s is None else now_s) - ago_s) * 1e6
    return [entry for entry in found if entry.time_us >= begin]


def line(entry: Entry) -> str:
    """One line for a person; the evidence is in the JSON form."""
    return f"{moment(entry.time_us)}  {entry.text}" + (f": {entry.reason}" if entry.reason else "")


def print_timeline(found: Iterable[Entry], console: Console, *, as_json: bool) -> None:
    for entry in found:
        text = json.dumps(asdict(entry)) if as_json else line(entry)
        console.print(text, markup=False, highlight=False, soft_wrap=True)
