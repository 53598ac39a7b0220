"""The table of threats names tests that exist."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "architecture" / "security.md"


def rows() -> list[list[str]]:
    """The cells of the table under "Threats"."""
    section = PAGE.read_text().partition("## Threats\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")][1:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def defined() -> set[str]:
    found: set[str] = set()
    for path in (ROOT / "tests").rglob("test_*.py"):
        found |= set(re.findall(r"^def (test_\w+)\(", path.read_text(), re.MULTILINE))
    return found


def test_every_test_that_a_threat_names_exists() -> None:
    named = {name for row in rows() for name in re.findall(r"`(test_\w+)`", row[-1])}
    assert len(named) > 20
    assert named <= defined()


def test_a_threat_without_a_test_says_that_nothing_stops_it() -> None:
    for access, attempt, stopped, tests in rows():
        assert tests or stopped.startswith("nothing"), (access, attempt)
