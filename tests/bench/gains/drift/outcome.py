"""What came of a drawn drift, and the rules by which it counts.

All of it was fixed before any result was seen. **Recovered within one release**: of what the drift
cost the drifted devices together at least half is won back (WON_BACK), or they are within NEAR of
what they had before. A drift that costs less than NEAR needs no recovery and is counted apart.
**Made worse**: a device that did not drift and is more than WORSE worse on what only measures it;
beyond chance if the exact test gives at most CHANCE, two-sided. Shares of right answers are
compared by McNemar's test, errors by the sign test of the hours, which is the same one.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from tests.bench.gains.drift.draws import Draw
from tests.bench.report import Cell, Figure, Goal, Table

PATIENCE = 24  # windows after which a run begins without an alarm
WON_BACK, NEAR = 0.5, 0.05
WORSE, CHANCE = 0.01, 0.05
ALARM_WINDOWS, FALSE_SHARE, RECOVERED = 6, 2.0, 90.0  # the goals


@dataclass
class Alarms:
    """The alarms of a draw's devices. first: windows until a device that had drifted alarmed;
    quiet: windows of devices without drift in which something was decided; false: the alarms in
    them."""

    first: int | None = None
    quiet: int = 0
    false: int = 0

    def note(self, alarmed: bool | None, since: int) -> None:
        """Note a device's window; `alarmed` is None if nothing was decided, `since` counts windows
        since the device's drift began, the first is 1; 0 without drift."""
        if since:
            if alarmed and self.first is None:
                self.first = since
        elif alarmed is not None:
            self.quiet += 1
            self.false += alarmed


@dataclass(frozen=True)
class Other:
    """A device that did not drift: its gain by the release, and the chance of it, on so many
    segments."""

    name: str
    gain: float
    chance: float
    segments: int = 0

    @property
    def worse(self) -> bool:
        return self.gain < -WORSE

    @property
    def worse_beyond_chance(self) -> bool:
        return self.worse and self.chance <= CHANCE


@dataclass(frozen=True)
class Outcome:
    """What came of a draw. run: windows from the drift's begin to the run. before, old, offered,
    new: the task's metric on the drifted devices, before the drift and after it, with the version
    before, with the run's candidate whatever became of it, and with what answers in the end. kept:
    devices that keep the version before; trust: the mean of the drifted devices' in the teacher;
    sign: -1 of errors; copy: the metric where devices have copies of their own; norm: where they
    have statistics of their own, and norm_others what becomes of the others then."""

    draw: Draw
    alarms: Alarms
    run: int
    before: float
    old: float
    offered: float
    new: float
    gate: str
    others: list[Other]
    kept: int
    trust: float
    sign: float = 1.0
    copy: float | None = None
    norm: float | None = None
    norm_others: Sequence[Other] = ()

    @property
    def cost(self) -> float:
        return self.sign * (self.before - self.old)

    @property
    def won(self) -> float:
        return self.sign * (self.new - self.old)

    @property
    def needed(self) -> bool:
        return self.cost >= NEAR

    @property
    def recovered(self) -> bool:
        return self._recovers(self.new)

    @property
    def recovered_by_copies(self) -> bool:
        return self.copy is not None and self._recovers(self.copy)

    @property
    def recovered_by_norm(self) -> bool:
        return self.norm is not None and self._recovers(self.norm)

    def _recovers(self, found: float) -> bool:
        won = self.sign * (found - self.old)
        return won >= WON_BACK * self.cost or self.cost - won <= NEAR

    @property
    def windows(self) -> float:
        """Windows until the alarm; without one, more than were looked at."""
        return float(PATIENCE + 1 if self.alarms.first is None else self.alarms.first)

    def __str__(self) -> str:
        figures = " -> ".join(f"{x:.2f}" for x in (self.before, self.old, self.offered, self.new))
        return (
            f"{self.draw.number}: {self.draw.how}, {len(self.draw.who)} devices, alarm "
            f"{self.alarms.first}, run {self.run}, trust {self.trust:.2f}, before, old, offered, "
            f"new {figures}; {self.gate}; kept {self.kept}; worst "
            f"{min(other.gain for other in self.others):+.2f}"
        )


def table(title: str, text: str, found: Sequence[Outcome], scale: float) -> Table:
    """A row for each draw; figures times `scale`."""
    rows: list[list[Cell]] = []
    for one in found:
        verdict = "yes" if one.recovered else "no"
        rows.append([
            one.draw.number, one.draw.how, ", ".join(name[-2:] for name in one.draw.who),
            one.draw.after, one.alarms.first, one.run,
            scale * one.before, scale * one.old, scale * one.new,
            None if one.copy is None else scale * one.copy,
            None if one.norm is None else scale * one.norm,
            verdict if one.needed else "not needed", one.gate.partition(":")[0],
            scale * min(other.gain for other in one.others),
            sum(other.worse for other in one.others),
            sum(other.worse_beyond_chance for other in one.others), one.kept,
            sum(other.worse for other in one.norm_others),
        ])  # fmt: skip
    columns = [
        "draw", "how", "who", "after", "alarm", "run", "before", "old", "new", "copy",
        "norm", "recovered", "candidate", "worst", "worse", "beyond chance", "kept", "norm worse",
    ]  # fmt: skip
    return Table(title, f"{text} {_COLUMNS}", columns, rows)


_COLUMNS = (
    "After: windows from the release before the drift to its begin. Alarm and run: windows from "
    "the drift's begin to the first alarm of a device that drifted, and to the run. Old and new: "
    "with the version before, and with what answers after one release. Candidate: how much of the "
    "way the run offers, and whether the gate refuses it. Worst: the gain of the other device that "
    "is worst off; worse: other devices that are more than .01 worse off; beyond chance: those "
    f"with p at most {CHANCE}. Kept: devices that keep the version before."
)


def by_kind(title: str, found: Sequence[Outcome], scale: float) -> Table:
    rows: list[list[Cell]] = []
    for how in sorted({one.draw.how for one in found}):
        of = [one for one in found if one.draw.how == how]
        needed = [one for one in of if one.needed]
        measured = [
            Figure.of([one.windows for one in of]),
            Figure.of([scale * one.cost for one in of]),
            Figure.of([scale * one.sign * (one.offered - one.old) for one in of]),
            Figure.of([scale * one.won for one in of]),
        ]
        refused = sum("refused" in one.gate for one in of)
        recovered = sum(one.recovered for one in needed)
        copies = sum(one.recovered_by_copies for one in needed) if of[0].copy is not None else None
        norms = sum(one.recovered_by_norm for one in needed) if of[0].norm is not None else None
        rows.append([how, len(of), *measured, refused, len(needed), recovered, copies, norms])
    text = (
        "The median, the least and the most. Windows: until the alarm; without one, "
        f"{PATIENCE + 1}. Cost: of the drift, to the devices that drifted; candidate and won back: "
        "what the run's candidate gains there, and what answers in the end. Refused: by the gate. "
        "By copies, by norm: recovered where devices have own copies, or own statistics."
    )
    columns = [
        "how", "draws", "windows", "cost", "candidate", "won back", "refused", "need recovery",
        "recovered", "by copies", "by norm",
    ]  # fmt: skip
    return Table(title, text, columns, rows)


def goals(name: str, found: Sequence[Outcome]) -> list[Goal]:
    windows = [one.windows for one in found]
    needed = [one for one in found if one.needed]
    quiet, false = (sum(one.alarms.quiet for one in found), sum(one.alarms.false for one in found))
    recovered = 100 * sum(one.recovered for one in needed) / max(len(needed), 1)
    in_time = 100 * sum(each <= ALARM_WINDOWS for each in windows) / len(windows)
    beyond = sum(any(other.worse_beyond_chance for other in one.others) for one in found)
    ever = sum(any(other.worse for other in one.others) for one in found)
    of = f"draws of {len(found)}"
    copied = [
        Goal(
            f"{name}: recovered where devices have {what} of their own, %",
            100 * sum(recovers for recovers in each) / max(len(needed), 1),
        )
        for what, each, measured in (
            ("copies", [one.recovered_by_copies for one in needed], [o.copy for o in found]),
            ("statistics", [one.recovered_by_norm for one in needed], [o.norm for o in found]),
        )
        if any(figure is not None for figure in measured)
    ]
    return [
        Goal(f"{name}: recovered within one release, % of the {len(needed)} draws that need it",
             recovered, at_least=RECOVERED),
        Goal(f"{name}: windows until the alarm", Figure.of(windows), at_most=ALARM_WINDOWS),
        Goal(f"{name}: windows until the alarm, slowest draw", max(windows), at_most=ALARM_WINDOWS),
        Goal(f"{name}: alarm within {ALARM_WINDOWS} windows, % of draws", in_time),
        Goal(f"{name}: false alarms, % of {quiet:,} windows", 100 * false / max(quiet, 1),
             at_most=FALSE_SHARE),
        Goal(f"{name}: {of} with another device worse beyond chance", beyond, at_most=0),
        Goal(f"{name}: {of} with another device worse, by chance or not", ever),
        *copied,
    ]  # fmt: skip
