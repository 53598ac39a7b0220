"""The seam to matplotlib: pictures as SVG, for a page."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from streams.batch.records.progress import ClassCounts
from streams.contract.errors import UsageError
from streams.drift.distances import shares
from streams.drift.reference import Feature

BEFORE, NOW = "#9aa7b2", "#00796b"
COLUMNS = 3


@dataclass(frozen=True)
class Pair:
    """A feature's counts in the reference and in the job."""

    title: str
    feature: Feature
    counts: np.ndarray


def need_matplotlib() -> None:
    """Raise UsageError if there is no matplotlib."""
    _figure(1, 1)


def histograms(pairs: Sequence[Pair], classes: Sequence[str]) -> str:
    """Return the shares of each cell, the reference beside the job."""
    rows = -(-len(pairs) // COLUMNS)
    figure = _figure(11, 2.9 * rows)
    for i, pair in enumerate(pairs):
        axes = figure.add_subplot(rows, COLUMNS, i + 1)
        names, chosen = _cells(pair, classes)
        places = np.arange(len(names))
        for own, colour, shift, label in (
            (np.asarray(pair.feature.counts), BEFORE, -0.2, "reference"),
            (pair.counts, NOW, 0.2, "job"),
        ):
            axes.bar(places + shift, shares(own)[chosen], 0.4, color=colour, label=label)
        axes.set_title(pair.title, fontsize=9)
        axes.set_xticks(places, names, fontsize=7, rotation=30, ha="right")
        axes.tick_params(axis="y", labelsize=7)
        axes.spines[["top", "right"]].set_visible(False)
        if i == 0:
            axes.legend(fontsize=7, frameon=False)
    return _svg(figure)


def by_class(classes: dict[str, ClassCounts]) -> str:
    """Return the share of right answers of each class that has labels."""
    names = [name for name, one in classes.items() if one.labelled]
    figure = _figure(7, 0.6 + 0.34 * len(names))
    axes = figure.add_subplot(1, 1, 1)
    found = [classes[name].correct / classes[name].labelled for name in names]
    bars = axes.barh(names[::-1], found[::-1], 0.6, color=NOW)
    texts = [f"{one:.2f} of {classes[n].labelled:,}" for n, one in zip(names, found, strict=True)]
    axes.bar_label(bars, texts[::-1], fontsize=8, padding=3)
    axes.set_xlim(0, 1.25)
    axes.set_xticks([0, 0.5, 1])
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    return _svg(figure)


def _cells(pair: Pair, classes: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """Return the names of the cells that are shown, and their indices: those that have counts, and
    all between the edges."""
    edges = pair.feature.edges
    if not pair.feature.ordered and len(classes) == len(edges) - 1:
        inner = list(classes)
    else:
        inner = [f"{a:.3g}…{b:.3g}" for a, b in pairwise(edges)]
    names = [f"< {edges[0]:.3g}", *inner, f"≥ {edges[-1]:.3g}", "null", "not finite"]
    there = (np.asarray(pair.feature.counts) > 0) | (pair.counts > 0)
    there[1 : len(edges)] = True
    chosen = np.flatnonzero(there)
    return [names[i] for i in chosen], chosen


def _figure(width: float, height: float) -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError as exc:
        raise UsageError("--report needs matplotlib: pip install 'tidewheel[plot]'") from exc
    return Figure(figsize=(width, height), layout="constrained")


def _svg(figure: Any) -> str:
    data = io.StringIO()
    figure.savefig(data, format="svg", metadata={"Date": None, "Creator": None})
    text = data.getvalue()
    return text[text.index("<svg") :]
