"""The numbered steps at which a process can be killed are those that the code calls and that the
settings reference names."""

import ast
import re
from pathlib import Path

from streams.runtime.failpoints import STEPS

ROOT = Path(__file__).parents[2]
SETTINGS = ROOT / "docs" / "reference" / "settings.md"
PACKAGES = ("streams", "federation", "edge_client", "compose")
POINT = re.compile(r"([a-z]+)-step-(\d+)")


def in_code() -> dict[str, set[int]]:
    """By name, the steps at whose ends the code calls its failpoint."""
    found: dict[str, set[int]] = {}
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                for arg in node.args if isinstance(node, ast.Call) else ():
                    text = arg.value if isinstance(arg, ast.Constant) else None
                    if isinstance(text, str) and (point := POINT.fullmatch(text)):
                        found.setdefault(point[1], set()).add(int(point[2]))
    return found


def declared() -> dict[str, set[int]]:
    """What TIDEWHEEL_FAILPOINT takes."""
    found = re.findall(r"([a-z]+)-step-\[(\d)-?(\d)\]", STEPS)
    return {name: set(range(int(first), int(last) + 1)) for name, first, last in found}


def documented() -> dict[str, set[int]]:
    found = re.findall(r"`([a-z]+)-step-(\d)` (?:to|and) `-(\d)`", SETTINGS.read_text())
    return {name: set(range(int(first), int(last) + 1)) for name, first, last in found}


def test_the_code_has_the_steps_that_can_be_armed_and_that_are_documented() -> None:
    assert in_code() == declared() == documented()
