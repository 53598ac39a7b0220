"""What came of a drawn drift, and the rules by which it counts.

They were fixed before any result was seen. Recovered within one release: of what the drift cost the
drifted devices together at least half is won back, or they are within NEAR of what they had; a
drift that costs less than NEAR needs no recovery. Made worse: a device that did not drift and is
more than WORSE worse; beyond chance if the exact test gives at most CHANCE.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.frame import Bench, Cell, Figure
from benchmarks.gains.recordings import Draw

PATIENCE = 24  # windows after which a run begins without an alarm
WON_BACK, NEAR, WORSE, CHANCE = 0.5, 0.05, 0.01, 0.05
ALARM_WINDOWS, FALSE_SHARE, RECOVERED = 6, 2.0, 90.0  # the goals


@dataclass
class Alarms:
    """first: windows until a device that had drifted alarmed; quiet: windows without drift in which
    something was decided; false: the alarms in them."""

    first: int | None = None
    quiet: int = 0
    false: int = 0

    def note(self, alarmed: bool | None, since: int) -> None:
        """Note a device's window; `since` counts its windows from the drift on, 0 without one."""
        if since:
            if alarmed and self.first is None:
                self.first = since
        elif alarmed is not None:
            self.quiet += 1
            self.false += alarmed


@dataclass(frozen=True)
class Other:
    """A device that did not drift: its gain by the release, and the chance of that."""

    gain: float
    chance: float

    @property
    def worse_beyond_chance(self) -> bool:
        return self.gain < -WORSE and self.chance <= CHANCE


@dataclass(frozen=True)
class Outcome:
    """run: windows from the drift to the run. The task's metric on the drifted devices: before the
    drift; after it with the version before (old), with the run's candidate (offered), with what
    answered when the run began (mended), and in the end (new). kept: devices on which a challenger
    answers in the end."""

    draw: Draw
    alarms: Alarms
    run: int
    before: float
    old: float
    offered: float
    mended: float
    new: float
    gate: str
    others: list[Other]
    kept: int

    @property
    def cost(self) -> float:
        return self.before - self.old

    @property
    def needed(self) -> bool:
        return self.cost >= NEAR

    def recovers(self, found: float) -> bool:
        won = found - self.old
        return won >= WON_BACK * self.cost or self.cost - won <= NEAR

    @property
    def windows(self) -> float:
        """Windows until the alarm; without one, more than were looked at."""
        return float(PATIENCE + 1 if self.alarms.first is None else self.alarms.first)


def report(bench: Bench, text: str, found: Sequence[Outcome]) -> None:
    rows: list[list[Cell]] = []
    for one in found:
        verdict = "yes" if one.recovers(one.new) else "no"
        figures = [100 * x for x in (one.before, one.old, one.mended, one.new)]
        rows.append([
            one.draw.number, one.draw.how, len(one.draw.who), one.alarms.first, one.run, *figures,
            verdict if one.needed else "not needed", one.gate.partition(":")[0],
            100 * min((other.gain for other in one.others), default=0.0), one.kept,
        ])  # fmt: skip
    columns = ["draw", "how", "devices", "alarm", "run", "before", "old", "at the run", "new",
               "recovered",
               "candidate", "worst other", "challengers"]  # fmt: skip
    bench.table("Drawn drifts", columns, rows, text)
    kinds: list[list[Cell]] = []
    for how in sorted({one.draw.how for one in found}):
        of = [one for one in found if one.draw.how == how]
        needed = [one for one in of if one.needed]
        parts = [(one.windows, 100 * one.cost, 100 * (one.offered - one.old)) for one in of]
        spans = [Figure.of(list(each)) for each in zip(*parts, strict=True)]
        refused = sum("refused" in one.gate for one in of)
        kinds.append([how, len(of), *spans, refused, len(needed),
                      sum(o.recovers(o.new) for o in needed)])  # fmt: skip
    titles = ["how", "draws", "windows to the alarm", "cost", "the candidate gains", "refused",
               "need recovery", "recovered"]  # fmt: skip
    bench.table("Drawn drifts by kind", titles, kinds)
    _goals(bench, found)


def _goals(bench: Bench, found: Sequence[Outcome]) -> None:
    needed = [one for one in found if one.needed]
    quiet, false = (sum(one.alarms.quiet for one in found), sum(one.alarms.false for one in found))
    share = 100 * sum(o.recovers(o.new) for o in needed) / max(len(needed), 1)
    text = f"drifts: recovered within one release, % of {len(needed)} draws"
    bench.goal(text, share, at_least=RECOVERED)
    windows = [one.windows for one in found]
    bench.goal("drifts: windows to the alarm", Figure.of(windows), at_most=ALARM_WINDOWS)
    bench.goal("drifts: the slowest", max(windows), at_most=ALARM_WINDOWS)
    text = f"drifts: false alarms, % of {quiet:,} windows"
    bench.goal(text, 100 * false / max(quiet, 1), at_most=FALSE_SHARE)
    beyond = sum(any(other.worse_beyond_chance for other in one.others) for one in found)
    bench.goal("drifts: draws with another device worse beyond chance", beyond, at_most=0)
