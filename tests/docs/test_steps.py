"""Promise 3: the numbered steps in the code, in the list of failpoints and on the architecture
pages are the same ones."""

import re
from pathlib import Path

import pytest

from streams.runtime.failpoints import STEPS

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
SETTINGS = DOCS / "reference" / "settings.md"
PACKAGES = ("streams", "federation", "edge_client", "compose")
IN_CODE = re.compile(r"\"([a-z]+)-step-(\d+)\"")
# A page may number the steps of one list, and tell of a second one's failpoints in a table.
WITHOUT_A_LIST = {"thin"}


def in_code() -> dict[str, set[int]]:
    """By name, the steps at whose ends the code has a failpoint."""
    found: dict[str, set[int]] = {}
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            for name, number in IN_CODE.findall(path.read_text()):
                found.setdefault(name, set()).add(int(number))
    return found


def declared() -> dict[str, set[int]]:
    """What TIDEWHEEL_FAILPOINT takes."""
    found = {}
    for name, numbers in re.findall(r"([a-z]+)-step-\[([\d-]+)\]", STEPS):
        first, last = int(numbers[0]), int(numbers[-1])
        found[name] = set(range(first, last + 1))
    return found


def documented() -> dict[str, tuple[set[int], Path, str]]:
    """As the table in the settings reference has it: steps, page and heading."""
    found = {}
    for line in SETTINGS.read_text().splitlines():
        link = re.search(r"\]\((\S+)#(\S+)\)", line)
        for name, first, last in re.findall(r"`([a-z]+)-step-(\d)` (?:to|and) `-(\d)`", line):
            assert link, line
            steps = set(range(int(first), int(last) + 1))
            found[name] = steps, (SETTINGS.parent / link[1]).resolve(), link[2]
    return found


def section(page: Path, anchor: str) -> str:
    """The text under a heading, up to the next one of its level."""
    lines = page.read_text().splitlines()
    for i, line in enumerate(lines):
        title = line.lstrip("#").strip()
        if line.startswith("#") and title.lower().replace(" ", "-").replace("`", "") == anchor:
            level = len(line) - len(line.lstrip("#"))
            rest = lines[i + 1 :]
            ends = [k for k, x in enumerate(rest) if re.match(rf"#{{1,{level}}} ", x)]
            return "\n".join(rest[: ends[0]] if ends else rest)
    raise AssertionError(f"{page} has no heading {anchor}")


def test_the_code_has_the_steps_that_can_be_armed_and_that_are_documented() -> None:
    assert in_code() == declared() == {name: steps for name, (steps, *_) in documented().items()}


@pytest.mark.parametrize("name", sorted(declared().keys() - WITHOUT_A_LIST))
def test_the_page_numbers_as_many_steps(name: str) -> None:
    steps, page, anchor = documented()[name]
    numbers = [int(n) for n in re.findall(r"^(\d+)\. ", section(page, anchor), re.MULTILINE)]
    wanted = sorted(steps)
    lists = [numbers[i:] for i, number in enumerate(numbers) if number == 1]
    lengths = [_length(found) for found in lists]
    assert len(wanted) in lengths, f"{page.name}, {anchor} has lists of {lengths} steps"


def _length(numbers: list[int]) -> int:
    """How far they count up from 1."""
    return next((i for i, n in enumerate(numbers) if n != i + 1), len(numbers))
