"""What `pip install tidewheel[EXTRA]` brings, by the metadata of what is installed here."""

import tomllib
from importlib.metadata import Distribution, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[3]


def needed(*extras: str) -> dict[str, Distribution]:
    """Return the installed distributions that tidewheel[extras] brings, by name; our own
    requirements are those of this tree."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    optional = project["optional-dependencies"]
    found: dict[str, Distribution] = {}
    seen: set[tuple[str, str]] = set()
    todo = [("tidewheel", extra) for extra in ("", *extras)]
    while todo:
        name, extra = todo.pop()
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        if name == "tidewheel":
            texts = optional[extra] if extra else project["dependencies"]
        else:
            found[name] = distribution(name)
            texts = found[name].requires or []
        for requirement in map(Requirement, texts):
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                name = canonicalize_name(requirement.name)
                todo += [(name, more) for more in ("", *requirement.extras)]
    return found
