"""The pages of docs/benchmarks: `python -m tests.bench.pages [--check]`.

A page is made of the figures of one run (`docs/benchmarks/NAME.json`) and of the text that says how
they are measured (`tests/bench/NAME/about.md`). Without `--check` the pages are written again from
both; with it they are only compared, and the command fails where one differs. Either way it names
the pages whose code has changed since.

A benchmark calls `begin`, `keep` after each part, and `finish`. Only a full run writes its page;
any run leaves its figures in `.tidewheel/bench/NAME.json`.
"""

import argparse
import sys
from collections.abc import Sequence

from streams.runtime.disk import write_atomic
from tests.bench.machine import facts
from tests.bench.report import Results, render
from tests.bench.staleness import ROOT, changed, digests, warning

PAGES = ROOT / "docs" / "benchmarks"
RUNS = ROOT / ".tidewheel" / "bench"

# What all benchmarks measure with.
_SHARED = tuple(
    f"tests/bench/{name}.py" for name in ("command", "kafka", "machine", "meter", "report")
)
_OURS = ("federation", "edge_client", "streams", "compose")

# What each benchmark measures, and with what: the folders and files whose change makes its page
# old. tests/bench/test_pages.py compares them with what the benchmark imports.
PARTS = {
    name: (*parts, *_SHARED, f"tests/bench/{name}")
    for name, parts in {
        "streams": ("streams", "compose", "tests/streams"),
        "edge": _OURS,
        "federation": (*_OURS, "tests/flower_arithmetic.py"),
        "batch": ("streams", "federation", "compose", "tests/bench/edge", "tests/postgresql.py"),
        "pedestrians": ("federation", "edge_client", "streams", "tests/bench/federation"),
        "soak": _OURS,
        "release": (*_OURS, "examples/drift", "tests/federation"),
        "scale": (
            "streams", "federation", "compose", "tests/fakes", "tests/bench/control",
            "tests/bench/federation", "tests/bench/streams",
        ),
        "gains": (
            "federation", "edge_client", "streams", "examples/drift", "tests/bench/federation",
            "tests/bench/pedestrians",
        ),
    }.items()
}  # fmt: skip


def begin(name: str, command: str, kafka: str, packages: Sequence[str]) -> Results:
    """Return the results of a run that begins: what it measures, and no figures yet."""
    return Results(facts(command, kafka, packages, *PARTS[name]), digests(PARTS[name]))


def keep(name: str, results: Results) -> None:
    """Write down what has been measured so far: a run that is ended early leaves it."""
    RUNS.mkdir(parents=True, exist_ok=True)
    write_atomic(RUNS / f"{name}.json", results.to_json().encode())


def finish(name: str, results: Results, *, whole: bool) -> None:
    """Print the results; those of a whole run are the page from now on."""
    if changed(results.digests):
        results.facts["commit"] += ", with changes during the run"
    keep(name, results)
    if whole:
        PAGES.mkdir(parents=True, exist_ok=True)
        write_atomic(PAGES / f"{name}.json", results.to_json().encode())
        write_atomic(PAGES / f"{name}.md", page(name).encode())
    print(render(results))  # noqa: T201


def read(name: str) -> Results:
    """Return the results that a page is made of."""
    return Results.from_json((PAGES / f"{name}.json").read_text())


def written() -> list[str]:
    """Return the benchmarks of which a full run has written a page."""
    return [name for name in PARTS if (PAGES / f"{name}.json").exists()]


def page(name: str) -> str:
    """Return a page as its figures and its text have it."""
    about = (ROOT / "tests" / "bench" / name / "about.md").read_text().strip()
    made = f"<!-- `make bench-{name}` writes this page: see tests/bench/pages.py. -->"
    return f"{made}\n\n{about}\n\n## The run\n\n{render(read(name))}\n"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.pages")
    parser.add_argument("--check", action="store_true", help="compare, and write nothing")
    check, differ = parser.parse_args().check, []
    for name in written():
        path, results, text = PAGES / f"{name}.md", read(name), page(name)
        if check and path.read_text() != text:
            differ.append(str(path.relative_to(ROOT)))
        if not check:
            write_atomic(path, text.encode())
        if (old := warning(results.facts["commit"], results.digests)) is not None:
            _say(f"{path.relative_to(ROOT)}: {old}")
    if differ:
        _say(f"differ from their JSON: {', '.join(differ)}; run `python -m tests.bench.pages`")
        sys.exit(1)


def _say(text: str) -> None:
    print(text, file=sys.stderr)  # noqa: T201


if __name__ == "__main__":
    main()
