"""Promise 3: the numbered steps in the code, in the list of failpoints and on the architecture
pages are the same ones, by their numbers and by what they say.

A module and its page word a step in their own ways: the page has links and says more. So their
words are compared, each by its first letters: a step has to have enough of them in common with the
step of its number on the page, and any two steps more than if they changed places.
"""

import ast
import itertools
import re
from pathlib import Path

import pytest

from streams.runtime import failpoints
from streams.runtime.failpoints import STEPS

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
SETTINGS = DOCS / "reference" / "settings.md"
PACKAGES = ("streams", "federation", "edge_client", "compose")
POINT = re.compile(r"([a-z]+)-step-(\d+)")
ON_THE_PAGE_ALONE = {"spool"}
STEP = re.compile(r"( *)(\d+)\.? +(\S.*)")
STEM = 4  # letters
ENOUGH = 1 / 3  # of the words of both, in common
SMALL = re.compile(
    "..?|all|and|are|each|for|from|its|one|still|that|the|then|under|what|where|which|whose|with"
)


def in_code() -> dict[str, set[int]]:
    """By name, the steps at whose ends the code calls its failpoint."""
    found: dict[str, set[int]] = {}
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            for point in points(ast.parse(path.read_text())):
                found.setdefault(point[1], set()).add(int(point[2]))
    return found


def points(tree: ast.AST) -> list[re.Match[str]]:
    """The failpoints that a module gives to a function as they are."""
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    given = [arg.value for call in calls for arg in call.args if isinstance(arg, ast.Constant)]
    found = [POINT.fullmatch(value) for value in given if isinstance(value, str)]
    return [match for match in found if match]


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


@pytest.mark.parametrize("name", sorted(declared()))
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


def told(name: str) -> list[str]:
    """The steps as the docstring of their module has them, which the list of failpoints names."""
    table = re.findall(
        r"^ +([a-z]+)-step-\S+ +(\w+(?:\.\w+)+)", failpoints.__doc__ or "", re.MULTILINE
    )
    path = ROOT / f"{dict(table)[name].replace('.', '/')}.py"
    return of_count(ast.get_docstring(ast.parse(path.read_text())) or "", len(declared()[name]))


def on_page(name: str) -> list[str]:
    steps, page, anchor = documented()[name]
    return of_count(section(page, anchor), len(steps))


def of_count(text: str, count: int) -> list[str]:
    """The first list of so many steps; where there is none, the beginning of a longer one, whose
    last steps are somebody else's."""
    lists = sorted(numbered(text), key=lambda found: len(found) > count)
    return next(found[:count] for found in lists if len(found) >= count)


def numbered(text: str) -> list[list[str]]:
    """The numbered lists of a text, each from 1 on; what is indented further belongs to a step."""
    lists: list[list[str]] = []
    within: int | None = None  # the indentation of the step that is read
    for line in text.splitlines():
        step = STEP.fullmatch(line)
        if step and int(step[2]) == 1:
            lists.append([])
        if step and lists and int(step[2]) == len(lists[-1]) + 1:
            lists[-1].append(step[3])
            within = len(step[1])
        elif within is not None and len(line) - len(line.lstrip()) > within:
            lists[-1][-1] += f" {line.strip()}"
        else:
            within = None
    return lists


def stems(step: str) -> set[str]:
    """The beginnings of its words, without small words and without where its links lead."""
    words = re.findall(r"[a-z0-9]+", re.sub(r"\]\([^)]*\)", "]", step).lower())
    return {word[:STEM] for word in words if not SMALL.fullmatch(word)}


def in_common(step: str, other: str) -> float:
    a, b = stems(step), stems(other)
    return 2 * len(a & b) / (len(a) + len(b))


def unlike(code: list[str], page: list[str]) -> list[str]:
    """What differs between two lists of the same steps."""
    alike = {(i, k): in_common(a, b) for i, a in enumerate(code) for k, b in enumerate(page)}
    found = [
        f"{i + 1}. {a!r} is not {b!r}"
        for i, (a, b) in enumerate(zip(code, page, strict=True))
        if alike[i, i] < ENOUGH
    ]
    return found + [
        f"{i + 1} and {k + 1} have changed places"
        for i, k in itertools.combinations(range(len(code)), 2)
        if alike[i, i] + alike[k, k] <= alike[i, k] + alike[k, i]
    ]


@pytest.mark.parametrize("name", sorted(declared().keys() - ON_THE_PAGE_ALONE))
def test_the_page_says_the_same_of_each_step(name: str) -> None:
    code, page = told(name), on_page(name)
    assert len(code) == len(page) == len(declared()[name])
    assert unlike(code, page) == []


@pytest.mark.parametrize("name", sorted(declared().keys() - ON_THE_PAGE_ALONE))
def test_a_step_at_another_place_and_one_that_does_another_thing_are_noticed(name: str) -> None:
    code, page = told(name), on_page(name)
    for i in range(len(page)):
        assert unlike(code, [*page[:i], "wait until the moon has risen", *page[i + 1 :]])
    for i, k in itertools.combinations(range(len(page)), 2):
        moved = [*page[:i], *page[i + 1 : k + 1], page[i], *page[k + 1 :]]
        assert unlike(code, moved), (i + 1, k + 1)
