"""What a chart shows, as `static/console.js` draws it (<tw-chart>). Pure."""

import math
from collections.abc import Sequence
from typing import Any

from streams.fleet.view import model_number

# Okabe and Ito (2008): told apart by people with any kind of colour vision.
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#8C7A3F")
NO_VERSION = "#8a929b"
Points = list[tuple[float, float | None]]  # time in milliseconds, or a place from 0; value


def colour(version: str | None) -> str:
    """Return a version's colour, the same on every page."""
    number = model_number(version or "")
    return NO_VERSION if number < 0 else PALETTE[(number - 1) % len(PALETTE)]


def series(name: str, shade: str, points: Points, kind: str = "line") -> dict[str, Any]:
    """Return one line, or bars; values have four digits."""
    rounded = [(x, None if y is None else float(f"{y:.4g}")) for x, y in points]
    return {"name": name, "colour": shade, "points": rounded, "kind": kind}


def chart(label: str, lines: Sequence[dict[str, Any]], **options: Any) -> dict[str, Any]:
    """Return a chart; label: for who cannot see it. min, max: of the axis; log: powers of ten;
    names: of places, in the place of times."""
    return {"label": label, "series": [each for each in lines if each["points"]], **options}


def share_axis(lines: Sequence[dict[str, Any]], *, shares: bool) -> dict[str, float]:
    """Return the axis of shares, which ends at 1; none for other values."""
    values = [y for line in lines for _, y in line["points"] if y is not None]
    if not shares or not values:
        return {}
    return {"min": max(0.0, math.floor(10 * min(values) - 0.2) / 10), "max": 1}


def spark(values: Sequence[float]) -> str:
    """Return values as the points of an SVG line, 70 wide and 20 high."""
    low, high = min(values, default=0.0), max(values, default=1.0)
    low, high = (low - 0.05, high + 0.05) if high - low < 0.1 else (low, high)
    wide = 68 / max(1, len(values) - 1)
    return " ".join(
        f"{1 + n * wide:.1f},{19 - 18 * (value - low) / (high - low):.1f}"
        for n, value in enumerate(values)
    )


def metric_title(metric: str, *, lower_is_better: bool) -> str:
    """Return a heading for what a chart shows."""
    better = "lower" if lower_is_better else "higher"
    return f"{metric[:1].upper()}{metric[1:]} ({better} is better)"
