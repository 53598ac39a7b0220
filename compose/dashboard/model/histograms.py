"""Histograms of a device's last windows beside the reference's, cell by cell. Pure.

Of each device's last report the few that its worker sent are kept; what the reports of a fleet have
in common, edges and reference, is kept once.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

from pydantic import BaseModel

from streams.contract.window_report import ChannelDrift, DriftReport, FeatureHistogram

SHOWN, CELLS = 4, 64  # of a device, of a histogram
SAME = 1024  # references that are kept once


class Cell(BaseModel):
    """One cell. name: its bounds, or its class; low, high: the bounds, low included, None where
    there is none. reference, device: segments in it."""

    name: str
    low: float | None
    high: float | None
    reference: int
    device: int


class Histogram(BaseModel):
    """One of the features that have drifted most; psi, in nats, counts from the threshold on. Cells
    that are empty on both sides are left out, except those between bounds."""

    channel: str
    kind: str
    psi: float
    threshold: float
    alarm: bool
    reference: int
    device: int
    cells: list[Cell]


@dataclass(frozen=True, slots=True)
class Against:
    """What a feature is compared with."""

    ordered: bool
    edges: tuple[float, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Kept:
    """A histogram of a device's last report."""

    channel: str
    kind: str
    psi: float
    threshold: float
    alarm: bool
    against: Against
    counts: tuple[int, ...]

    def shown(self, classes: Sequence[str]) -> Histogram:
        """Return it for a page; classes: of the task."""
        return Histogram(
            channel=self.channel,
            kind=self.kind,
            psi=self.psi,
            threshold=self.threshold,
            alarm=self.alarm,
            reference=sum(self.against.counts),
            device=sum(self.counts),
            cells=_cells(self.against, self.counts, classes),
        )


@lru_cache(maxsize=SAME)
def _once(against: Against) -> Against:
    return against


def histograms_of(drift: DriftReport) -> tuple[Kept, ...]:
    """Return the histograms of a report, the worst first; those that make no sense are left out."""
    distances = {(c.channel, c.kind): c for c in drift.channels}
    found = []
    for made in drift.histograms[:SHOWN]:
        distance = distances.get((made.channel, made.kind))
        sizes = {len(made.counts), len(made.reference), len(made.edges) + 3}
        fits = len(sizes) == 1 and len(made.edges) > 1 and max(sizes) <= CELLS
        if distance is not None and fits:
            found.append(_kept(made, distance))
    return tuple(found)


def _kept(made: FeatureHistogram, distance: ChannelDrift) -> Kept:
    against = Against(made.ordered, tuple(made.edges), tuple(made.reference))
    return Kept(
        made.channel[:80],
        made.kind[:20],
        distance.psi,
        distance.threshold,
        distance.alarm,
        _once(against),
        tuple(made.counts),
    )


def _cells(against: Against, counts: Sequence[int], classes: Sequence[str]) -> list[Cell]:
    edges = against.edges
    names = _names(against, classes)
    bounds: list[tuple[float | None, float | None]] = [(None, edges[0]), *pairwise(edges)]
    bounds += [(edges[-1], None), (None, None), (None, None)]
    found = []
    rows = zip(names, bounds, against.counts, counts, strict=True)
    for number, (name, (low, high), theirs, own) in enumerate(rows):
        if theirs or own or (against.ordered and number <= len(edges)):
            low, high = (low, high) if against.ordered else (None, None)
            found.append(Cell(name=name, low=low, high=high, reference=theirs, device=own))
    return found


def _names(against: Against, classes: Sequence[str]) -> list[str]:
    edges = against.edges
    if against.ordered:
        told = _told(edges)
        inner = [f"{low} to {high}" for low, high in pairwise(told)]
        return [f"below {told[0]}", *inner, f"{told[-1]} and more", "null", "not finite"]
    inner = [f"class {n}" for n in range(len(edges) - 1)]
    if len(classes) == len(inner):
        inner = [name[:80] for name in classes]
    return ["no class", *inner, "no class", "null", "not finite"]


def _told(edges: Sequence[float]) -> list[str]:
    """Return bounds as texts that differ: with two digits of the narrowest cell."""
    narrowest = min(abs(b - a) for a, b in pairwise(edges))
    places = 1 - math.floor(math.log10(narrowest)) if narrowest > 0 else 9
    largest = max(abs(edge) for edge in edges)
    if places > 6 or largest >= 1e9:
        return [f"{edge:.6g}" for edge in edges]
    return [f"{edge:,.{max(0, places)}f}" for edge in edges]
