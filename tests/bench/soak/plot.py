"""The plot of a soak: memory, the store, and which version the devices serve, by day."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.bench.soak.run import Day

ABOVE: dict[str, Any] = {
    "fontsize": "small", "loc": "lower left", "bbox_to_anchor": (0, 1), "frameon": False,
}  # fmt: skip
COLOURS = (
    "#4477aa",
    "#ee6677",
    "#228833",
    "#ccbb44",
    "#66ccee",
    "#aa3377",
)  # Tol, colour-blind safe


def plot(days: Sequence[Day], path: Path) -> None:
    """Write an SVG."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "soak"  # the same picture from the same figures
    from matplotlib import pyplot as plt

    figure, (above, middle, below) = plt.subplots(
        3, 1, figsize=(8, 7.5), sharex=True, layout="constrained"
    )
    at = [day.day for day in days]
    names = sorted({name for day in days for name in day.memory_mb})
    for name, colour in zip(names, COLOURS, strict=False):
        above.plot(at, [day.memory_mb.get(name) for day in days], label=name, color=colour)
    above.set_ylabel("resident memory, MB")
    above.set_ylim(bottom=0)
    above.legend(ncols=len(names), **ABOVE)
    middle.plot(at, [day.store_mb for day in days], color=COLOURS[0], label="megabytes")
    middle.set_ylabel("store, MB")
    middle.set_ylim(bottom=0)
    files = middle.twinx()
    files.plot(at, [day.store_files for day in days], color=COLOURS[1], label="files")
    files.set_ylabel("store, files")
    files.set_ylim(bottom=0)
    lines = [*middle.get_lines(), *files.get_lines()]
    middle.legend(lines, [line.get_label() for line in lines], ncols=2, **ABOVE)
    versions = sorted({version for day in days for version in day.served})
    shares = [[day.served.get(version, 0) for day in days] for version in versions]
    below.stackplot(
        at, shares, labels=[f"version {version.partition('-')[0]}" for version in versions],
        colors=COLOURS,
    )  # fmt: skip
    below.set_ylabel("devices serving")
    below.set_xlabel("day of event time")
    below.legend(ncols=len(versions), **ABOVE)
    below.margins(0)
    for axes in (above, middle, below):
        axes.grid(alpha=0.3)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
