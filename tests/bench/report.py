"""The results of one run of a benchmark: as JSON, and as Markdown."""

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Self


@dataclass(frozen=True)
class Figure:
    """A figure that was measured several times: the median, and the spread around it."""

    median: float
    low: float
    high: float
    runs: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        """Make a figure of what the runs measured."""
        return cls(statistics.median(values), min(values), max(values), len(values))

    @classmethod
    def ratio(cls, above: Sequence[float], below: Sequence[float]) -> Self:
        """Make a figure of two contenders that took turns: the ratio in each turn."""
        return cls.of([one / other for one, other in zip(above, below, strict=True)])

    def __str__(self) -> str:
        middle = number(self.median)
        if self.runs < 2:
            return middle
        return f"{middle} ({number(self.low)} to {number(self.high)})"


Cell = str | float | int | None | Figure


@dataclass(frozen=True)
class Table:
    """Figures as they were measured; `columns` name them with their units."""

    title: str
    text: str
    columns: list[str]
    rows: list[list[Cell]]


@dataclass(frozen=True)
class Goal:
    """A figure and what was aimed at, if anything; of several runs the median is compared."""

    text: str
    measured: float | Figure
    at_least: float | None = None
    at_most: float | None = None

    @property
    def met(self) -> bool:
        found = self.measured.median if isinstance(self.measured, Figure) else self.measured
        low = self.at_least is None or found >= self.at_least
        return low and (self.at_most is None or found <= self.at_most)


@dataclass
class Results:
    """One run of a benchmark; `digests` are of the folders that were measured (see staleness)."""

    facts: dict[str, str]
    digests: dict[str, str] = field(default_factory=dict)
    tables: list[Table] = field(default_factory=list)
    goals: list[Goal] = field(default_factory=list)

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Self:
        found = json.loads(text, object_hook=_figure)
        return cls(
            found["facts"],
            found["digests"],
            [Table(**table) for table in found["tables"]],
            [Goal(**goal) for goal in found["goals"]],
        )


def _figure(found: dict[str, Any]) -> Any:
    return Figure(**found) if "median" in found else found


def render(results: Results) -> str:
    """Return the results as Markdown."""
    lines = [f"- {name}: {_fact(name, text)}" for name, text in results.facts.items()]
    if results.goals:
        lines += ["", "## Goals", "", *_table(["goal", "wanted", "measured", ""], _goals(results))]
    for table in results.tables:
        lines += ["", f"## {table.title}", "", *([table.text, ""] if table.text else [])]
        lines += _table(table.columns, [[number(cell) for cell in row] for row in table.rows])
    return "\n".join(lines)


def _fact(name: str, text: str) -> str:
    return f"`{text}`" if name == "command" else text


def _goals(results: Results) -> list[list[str]]:
    rows = []
    for goal in results.goals:
        wanted = [f"at least {number(goal.at_least)}"] if goal.at_least is not None else []
        wanted += [f"at most {number(goal.at_most)}"] if goal.at_most is not None else []
        verdict = ("met" if goal.met else "**missed**") if wanted else "-"
        rows.append([goal.text, " and ".join(wanted) or "-", number(goal.measured), verdict])
    return rows


def _table(columns: list[str], rows: list[list[str]]) -> list[str]:
    aligned = ["---", *["---:"] * (len(columns) - 1)]
    return ["| " + " | ".join(cells) + " |" for cells in [columns, aligned, *rows]]


def number(cell: Cell) -> str:
    """Return a cell's text: three figures, and thousands apart."""
    if cell is None:
        return "-"
    if isinstance(cell, str | Figure):
        return str(cell)
    if abs(cell) >= 100 or cell == int(cell):
        return f"{cell:,.0f}"
    return f"{cell:.1f}" if abs(cell) >= 10 else f"{cell:.2f}"
