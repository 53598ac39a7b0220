"""`python -m tests.bench.quick [--write]`: compare ratios with docs/benchmarks/quick.json.

A time may be BAND larger than the committed one before the command fails, bytes BYTES. The times
are CPU times, the least of nine turns, so other load does little; a figure beyond its band is
measured twice more, and the least of the three counts. `--write` commits to what is measured now.
"""

import argparse
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from streams.runtime.disk import write_atomic
from tests.bench.quick.ratios import Ratio, ratios

FILE = Path(__file__).parents[3] / "docs" / "benchmarks" / "quick.json"
BAND, BYTES = 0.25, 0.02
AGAIN = 2


def limit(name: str, committed: float) -> float:
    """Return the largest figure that passes."""
    return committed * (1 + (BYTES if name.startswith("bytes") else BAND))


def measured(name: str, ratio: Ratio, committed: float | None) -> float:
    found = ratio()
    for _ in range(AGAIN):
        if committed is None or found <= limit(name, committed):
            break
        found = min(found, ratio())
    return found


def worse(committed: Mapping[str, float], found: Mapping[str, float]) -> list[str]:
    """Return a line for each figure that is beyond its band, and for each that one side lacks."""
    lines = [
        f"{name}: {found[name]:.3g}, committed {was:.3g}, at most {limit(name, was):.3g}"
        for name, was in committed.items()
        if name in found and found[name] > limit(name, was)
    ]
    lines += [f"{name}: not measured any more" for name in committed if name not in found]
    lines += [f"{name}: not committed; add it by --write" for name in found.keys() - committed]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.quick")
    parser.add_argument("--write", action="store_true", help="commit to what is measured now")
    write = parser.parse_args().write
    committed: dict[str, float] = json.loads(FILE.read_text()) if FILE.exists() else {}
    found, began = {}, time.monotonic()
    for name, ratio in ratios():
        was = committed.get(name)
        found[name] = measured(name, ratio, None if write else was)
        beside = "" if was is None else f"  ({was:.3g})"
        _say(f"{time.monotonic() - began:4.0f} s  {found[name]:8.3g}{beside}  {name}")
    if write:
        text = json.dumps({name: float(f"{each:.4g}") for name, each in found.items()}, indent=1)
        write_atomic(FILE, f"{text}\n".encode())
    elif lines := worse(committed, found):
        _say("worse than committed:\n" + "\n".join(f"  {line}" for line in lines))
        sys.exit(1)


def _say(text: str) -> None:
    print(text, flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
