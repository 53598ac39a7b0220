"""`make mutants`: applies each mutant to a copy of the tree and runs the tests that must find it.

A mutant is killed by a test that fails on it and passes on the tree as it is. An error outside of a
test, as of a fixture, kills nothing, and neither do tests that do not end.

Exits 1 where a mutant survives, or where its text is not in the source any more.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

from tests.mutants.catalog import MUTANTS, Mutant

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 1500


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("--only", default="", help="mutants whose name has this text")
    jobs = os.cpu_count() or 1
    parser.add_argument("--jobs", type=int, default=jobs, help="mutants that are tried at a time")
    words = parser.parse_args()
    chosen = [mutant for mutant in MUTANTS if words.only in mutant.name]
    began, survived, trees = time.monotonic(), 0, SimpleQueue[Path]()

    def tried(mutant: Mutant) -> str | None:
        tree = trees.get()
        try:
            return killed_by(mutant, tree, words.jobs)
        finally:
            trees.put(tree)

    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(words.jobs) as pool:
        for number in range(words.jobs):
            trees.put(copy(Path(folder) / f"tree-{number}"))
        for mutant, killer in zip(chosen, pool.map(tried, chosen), strict=True):
            survived += killer is None
            say(f"{'killed  ' if killer else 'SURVIVED'}  {mutant.name}: {killer or mutant.tests}")
    say(f"{len(chosen)} mutants, {survived} survived, {time.monotonic() - began:.0f} s")
    return 1 if survived or not chosen else 0


def say(text: str) -> None:
    print(text, flush=True)  # noqa: T201


def copy(tree: Path) -> Path:
    """The files of the working tree that git knows, somewhere else."""
    names = subprocess.check_output(["git", "ls-files", "-z"], cwd=ROOT, text=True).split("\0")
    for name in filter(None, names):
        if (ROOT / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, tree / name)
    return tree


def killed_by(mutant: Mutant, tree: Path, jobs: int) -> str | None:
    """The first test that fails on the mutant and passes without it; None where none does."""
    path = tree / mutant.file
    sound = path.read_text()
    if sound.count(mutant.old) != 1:
        raise SystemExit(f"{mutant.name}: {mutant.old!r} is not once in {mutant.file}: update it")
    path.write_text(sound.replace(mutant.old, mutant.new))
    try:
        code, output = pytest(tree, mutant.tests, jobs)
    except subprocess.TimeoutExpired:
        say(f"{mutant.name}: {mutant.tests} did not end in {TIMEOUT_S} s")
        return None
    finally:
        path.write_text(sound)
    if code == 0:
        return None
    found = re.search(r"^FAILED (\S+)", output, re.MULTILINE)
    if found is None:
        raise SystemExit(f"{mutant.name}: no test failed, but pytest: {output[-500:]}")
    code, output = pytest(tree, found[1].partition("[")[0], jobs)  # a parameter may have spaces
    if code != 0:
        raise SystemExit(f"{found[1]} fails without {mutant.name!r} as well: {output[-500:]}")
    return found[1]


def pytest(tree: Path, tests: str, jobs: int) -> tuple[int, str]:
    """Run the tests until one fails; return the exit code and what was printed. Deadlines are those
    of a machine that does so many at a time: what is awaited never comes."""
    words = ["-B", "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--timeout", "300"]
    quick = {"OMP_NUM_THREADS": "1", "TIDEWHEEL_TESTS_SLOWEST": str(jobs)}
    done = subprocess.run(
        [sys.executable, *words, tests], cwd=tree, capture_output=True, text=True,
        timeout=TIMEOUT_S, env={**os.environ, "PYTHONPATH": str(tree), **quick},
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


if __name__ == "__main__":
    sys.exit(main())
