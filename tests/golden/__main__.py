"""`python -m tests.golden VERSION`: keep what this version writes, once for each release.

Files of an earlier version are never written again: they are what is out there.
"""

import json
import shutil
import sys
from pathlib import Path

from tests.golden.formats import FORMATS

HERE = Path(__file__).parent


def keep(folder: Path) -> None:
    """Write each format's sample, and beside it what is read of it."""
    for name, each in FORMATS.items():
        (folder / name).mkdir(parents=True)
        each.write(folder / name)
        shutil.copytree(folder / name, copy := folder / f"{name}.copy")
        facts = each.read(copy)  # opening may write
        shutil.rmtree(copy)
        (folder / f"{name}.json").write_text(json.dumps(facts, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m tests.golden VERSION")
    made = HERE / sys.argv[1]
    if made.exists():
        sys.exit(f"{made} exists: files of a version are written once")
    keep(made)
