"""What the benchmarks' commands have in common: their arguments, and parts one after the other."""

import argparse
import logging
import shlex
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.bench.machine import PATIENCE_S, load_fact, wait_until_quiet, watched
from tests.bench.pages import keep
from tests.bench.report import Results

Part = Callable[[Results], None]


def arguments(name: str, parts: Iterable[str]) -> argparse.ArgumentParser:
    """Return the parser of `python -m tests.bench.NAME`; `--only` may be repeated."""
    parser = argparse.ArgumentParser(prog=f"python -m tests.bench.{name}")
    parser.add_argument("--quick", action="store_true", help="less of everything; writes no page")
    parser.add_argument(
        "--only", action="append", choices=list(parts), metavar="PART",
        help=f"may be repeated; one of: {', '.join(parts)}",
    )  # fmt: skip
    return parser


def command_line(name: str) -> str:
    """Return the command as it was given, for the page."""
    return shlex.join(["python", "-m", f"tests.bench.{name}", *sys.argv[1:]])


@contextmanager
def working_folder() -> Iterator[Path]:
    """A folder that is removed afterwards. SIGTERM ends the command as an error does, so the folder
    is removed then too, and the processes that a benchmark has started are ended."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    folder = Path(tempfile.mkdtemp(prefix="tidewheel-bench-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def quiet(*loggers: str) -> None:
    """Let no message of these loggers through: they tell of each aggregation."""
    for name in loggers:
        logging.getLogger(name).setLevel(logging.CRITICAL)


def measure(
    name: str,
    results: Results,
    parts: Mapping[str, Part],
    asked: argparse.Namespace,
    broker: int | None = None,
    highest: Callable[[], float] | None = None,
) -> None:
    """Run the parts that were asked for, and keep what they found after each.

    A part begins when others use next to nothing, or when it has waited long enough. The page tells
    the highest load by processes that are neither the benchmark's nor the broker's: of whole parts,
    or what `highest` returns where the parts watch each of their runs.
    """
    results.facts["size"] = "quick" if asked.quick else "full"
    most = 0.0
    for part in asked.only or parts:
        wait_until_quiet(broker, PATIENCE_S)
        began = time.monotonic()
        with watched(broker) as load:
            parts[part](results)
        most = max(most, load.others)
        results.facts["other load"] = (
            load_fact(highest()) if highest is not None else load_fact(most, "a part")
        )
        say(f"{part}: {time.monotonic() - began:.0f} s")
        keep(name, results)


def say(text: str) -> None:
    """Print a line of progress."""
    print(text, file=sys.stderr, flush=True)  # noqa: T201
