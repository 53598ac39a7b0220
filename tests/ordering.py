"""The order of tests for several xdist workers: the long modules first, shared out.

`worksteal` gives each worker a stretch of the list and lets whoever is done take from the ends of
the others. With the long ones at the beginnings of all stretches, what is left to take is short.
"""

from collections.abc import Sequence
from typing import Any

LONG_S = 100  # a test that asks for more time than that is of a long module


def shared_out(modules: Sequence[tuple[str, float, int]], workers: int) -> list[str]:
    """Names of modules in their order; given (name, longest timeout in seconds, tests)."""
    stretches: list[list[str]] = [[] for _ in range(workers)]
    counts = [0] * workers
    long = sorted((m for m in modules if m[1] >= LONG_S), key=lambda m: (-m[1], m[0]))
    for i, (name, _, tests) in enumerate(long):
        stretches[i % workers].append(name)
        counts[i % workers] += tests
    for name, limit, tests in sorted(modules, key=lambda m: -m[2]):
        if limit < LONG_S:
            least = counts.index(min(counts))
            stretches[least].append(name)
            counts[least] += tests
    return [name for stretch in stretches for name in stretch]


def order(items: list[Any], workers: int) -> None:
    """Reorder pytest's items in place; the order within a module stays."""
    found: dict[str, list[Any]] = {}
    for item in items:
        found.setdefault(item.nodeid.partition("::")[0], []).append(item)
    modules = [(name, max(map(_limit_s, some)), len(some)) for name, some in found.items()]
    items[:] = [item for name in shared_out(modules, workers) for item in found[name]]


def _limit_s(item: Any) -> float:
    marker = item.get_closest_marker("timeout")
    return float(marker.args[0]) if marker is not None and marker.args else 0.0
