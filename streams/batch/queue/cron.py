"""When a schedule fires, and its times in the words of its command. Pure.

cronsim 2.8 (November 2026, no dependencies) has Debian cron's rules for daylight saving: a time
that does not exist fires when the gap ends, one that exists twice fires at the first, and where
hour or minute begins with `*` the clock that goes on counts. On `30 2 * * *` in Europe/Madrid
croniter 7.0.0 and APScheduler 3.11.3 fire twice on the day in October. Zones are zoneinfo's.

From a time inside the second of two equal hours cronsim first gives a time in the first one, which
is over. It is asked from REPEATED before, and what is over is left out.
"""

import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError

from streams.contract.errors import UsageError

REPEATED = 3 * 3_600_000_000  # more than a clock was ever set back, in microseconds
LOOK_BACK = tuple(timedelta(days=days) for days in (1, 32, 366, 9 * 366))
DIRECTIVES = "YymdjFHIMSTfpzZaAbBUWuwGV%"
TOKEN = re.compile(r"\{\{|\}\}|\{(start|end)(?::([^{}]+))?\}|[{}]")
Interval = tuple[int, int]  # of event time in microseconds: from the first to before the second


@dataclass(frozen=True)
class Cron:
    """A cron expression of five fields in a zone."""

    expression: str
    timezone: str

    def check(self) -> None:
        """Raise UsageError for what is no expression or no zone, or never fires."""
        if len(self.expression.split()) != 5:
            raise UsageError(f"--cron {self.expression!r}: write five fields, as '0 2 * * *'")
        try:
            next(CronSim(self.expression, datetime.now(self.zone)))
        except CronSimError as exc:
            raise UsageError(f"--cron {self.expression!r}: {exc}") from exc
        except StopIteration as exc:
            raise UsageError(f"--cron {self.expression!r} never fires") from exc

    @property
    def zone(self) -> ZoneInfo:
        try:
            return ZoneInfo(self.timezone)
        except (ZoneInfoNotFoundError, ValueError, OSError) as exc:
            raise UsageError(
                f"--timezone {self.timezone}: no such zone; write one as Europe/Madrid or UTC"
            ) from exc

    def after(self, time_us: int) -> Iterator[int]:
        """Yield all times after that one at which it fires."""
        for fire in map(micros, CronSim(self.expression, local(time_us - REPEATED, self.zone))):
            if fire > time_us:
                yield fire

    def last(self, time_us: int) -> int | None:
        """Return the last time up to that one at which it fires; None if that is long ago."""
        for span in LOOK_BACK:
            begin = time_us - span // timedelta(microseconds=1)
            found = deque(self._until(begin, time_us), maxlen=1)
            if found:
                return found[0]
        return None

    def intervals(self, begin_us: int, end_us: int) -> Iterator[Interval]:
        """Yield the intervals between neighbouring fires from `begin_us`, a fire, on, that have
        ended at `end_us`."""
        yield from pairwise([begin_us, *self._until(begin_us, end_us)])

    def _until(self, begin_us: int, end_us: int) -> Iterator[int]:
        for fire in self.after(begin_us):
            if fire > end_us:
                return
            yield fire


def local(time_us: int, zone: ZoneInfo) -> datetime:
    """Return a time in a zone."""
    return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=time_us)).astimezone(zone)


def micros(time: datetime) -> int:
    """Return an aware time in microseconds since 1970."""
    return (time.astimezone(UTC) - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


def fill(text: str, start: datetime, end: datetime) -> str:
    """Return a word with the times of an interval: {start} and {end} in ISO 8601 with the offset,
    {start:%Y-%m-%d} as strftime writes it, {{ and }} for braces. Nothing else is looked up; raise
    UsageError for other braces, and for letters that are not among the DIRECTIVES."""

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
        for directive in re.findall(r"%(.?)", form or "", re.DOTALL):
            if not directive or directive not in DIRECTIVES:
                raise UsageError(f"{text!r}: %{directive} is none of %{' %'.join(DIRECTIVES)}")
        return time.strftime(form) if form else time.isoformat()

    return TOKEN.sub(filled, text)
