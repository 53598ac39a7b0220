"""Histograms as tables with bars: what a bar shows stands beside it as a number."""

from dataclasses import dataclass

from nicegui import ui

from compose.dashboard.model.device import DevicePage
from compose.dashboard.model.histograms import Cell, Histogram
from compose.dashboard.pages.parts import el

NO_WINDOW = "No window has been reported. The first one brings histograms."
NO_REFERENCE = (
    "Drift is not watched: the teacher of the worker has no drift reference. tidewheel prepare "
    "makes one with the first model."
)
NONE_SENT = "The last report has no histograms."


@dataclass(frozen=True)
class Shown:
    """What the part shows; empty: what to do where there is none."""

    histograms: tuple[Histogram, ...] = ()
    windows: int = 0
    decided: bool = False
    empty: str = ""

    @classmethod
    def of(cls, page: DevicePage) -> "Shown":
        if page.drift is None:
            return cls(empty=NO_REFERENCE if page.windows else NO_WINDOW)
        if not page.histograms:
            return cls(empty=NONE_SENT)
        about = page.drift
        return cls(tuple(page.histograms), int(about["windows"]), bool(about["decided"]))


def draw_histograms(shown: Shown) -> None:
    """Draw them side by side, the one that has drifted most first."""
    if shown.empty:
        el("div", "empty", shown.empty)
        return
    most = max(histogram.device for histogram in shown.histograms)
    theirs = max(histogram.reference for histogram in shown.histograms)
    last = f"last {shown.windows} windows" if shown.windows != 1 else "last window"
    with ui.element("div").classes("row-of small legend"):
        _key("theirs", f"reference, {theirs:,} segments")
        _key("own", f"this device's {last}, {most:,} segments")
        if not shown.decided:
            el("span", "muted", "These are too few segments for an alarm.")
    with ui.element("div").classes("histograms"):
        for histogram in shown.histograms:
            _draw(histogram)


def _key(name: str, text: str) -> None:
    with ui.element("span").classes("key"):
        ui.element("i").classes(f"share {name}")
        el("span", text=text)


def _draw(histogram: Histogram) -> None:
    sides = max(histogram.reference, 1), max(histogram.device, 1)
    largest = max((max(_shares(cell, sides)) for cell in histogram.cells), default=0) or 1.0
    with ui.element("table").classes("histogram"):
        with ui.element("caption"):
            el("b", text=f"{histogram.channel} ({histogram.kind})")
            el(
                "span",
                "is is-drifting" if histogram.alarm else "muted",
                f"PSI {histogram.psi:.3f}, alarm from {histogram.threshold:.3f}",
            )
        with ui.element("thead"), ui.element("tr"):
            el("th", text="segments in").props("scope=col")
            ui.element("td")
            el("th", "number", "reference").props("scope=col")
            el("th", "number", "device").props("scope=col")
        with ui.element("tbody"):
            for cell in histogram.cells:
                _row(cell, _shares(cell, sides), largest)


def _row(cell: Cell, shares: tuple[float, float], largest: float) -> None:
    with ui.element("tr"):
        bounds = "" if cell.low is None and cell.high is None else "bounds"
        el("th", bounds, cell.name).props("scope=row")
        with ui.element("td").classes("shares").props("aria-hidden=true"):
            for name, share in zip(("theirs", "own"), shares, strict=True):
                wide = f"width: {100 * share / largest:.1f}%"
                ui.element("div").classes(f"share {name}" if share else "share").style(wide)
        for share in shares:
            el("td", "number", _percent(share))


def _shares(cell: Cell, sides: tuple[int, int]) -> tuple[float, float]:
    return cell.reference / sides[0], cell.device / sides[1]


def _percent(share: float) -> str:
    return "<1%" if 0 < share < 0.005 else f"{share:.0%}"
