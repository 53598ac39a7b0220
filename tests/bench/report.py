"""The results: as JSON, and as Markdown between two markers of a page."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Self

from streams.runtime.disk import write_atomic

Cell = str | float | int | None


@dataclass(frozen=True)
class Table:
    """Figures as they were measured; `columns` name them with their units."""

    title: str
    text: str
    columns: list[str]
    rows: list[list[Cell]]


@dataclass(frozen=True)
class Goal:
    """What was aimed at: `measured` is compared with `at_least` or `at_most`, if given."""

    text: str
    measured: float
    at_least: float | None = None
    at_most: float | None = None

    @property
    def met(self) -> bool:
        low = self.at_least is None or self.measured >= self.at_least
        return low and (self.at_most is None or self.measured <= self.at_most)


@dataclass
class Results:
    """One run of the benchmark."""

    facts: dict[str, str]
    tables: list[Table] = field(default_factory=list)
    goals: list[Goal] = field(default_factory=list)

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> Self:
        found = json.loads(text)
        return cls(
            found["facts"],
            [Table(**table) for table in found["tables"]],
            [Goal(**goal) for goal in found["goals"]],
        )


def render(results: Results) -> str:
    """The results as Markdown."""
    lines = [f"- {name}: {_fact(name, text)}" for name, text in results.facts.items()]
    if results.goals:
        lines += ["", "### Goals", "", *_table(["goal", "wanted", "measured", ""], _goals(results))]
    for table in results.tables:
        lines += ["", f"### {table.title}", "", table.text, ""]
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
    """Three figures, and thousands apart."""
    if cell is None:
        return "-"
    if isinstance(cell, str):
        return cell
    if abs(cell) >= 100 or cell == int(cell):
        return f"{cell:,.0f}"
    return f"{cell:.1f}" if abs(cell) >= 10 else f"{cell:.2f}"


def markers(name: str) -> tuple[str, str]:
    """What stands around the results of `make <name>` on a page."""
    return f"<!-- {name}: begin -->", f"<!-- {name}: end -->"


def insert(page: Path, name: str, text: str) -> None:
    """Put `text` between the page's markers, which are added to its end where they are missing."""
    begin, end = markers(name)
    found = page.read_text() if page.exists() else "# Benchmarks\n"
    if begin not in found:
        found = f"{found.rstrip()}\n\n{begin}\n{end}\n"
    before, after = found.split(begin)[0], found.split(end)[1]
    page.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(page, f"{before}{begin}\n{text.strip()}\n{end}{after}".encode())


def keep(path: Path | None, results: Results) -> None:
    """Write the results down as JSON, where a file is named for them."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(results.to_json() + "\n")
