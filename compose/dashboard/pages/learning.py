"""Federated runs: accuracy by round, updates admitted and refused, the gate's decision."""

from typing import Any

from fastapi import Request
from nicegui import ui

from compose.dashboard.model.learning import Learning, Run, gate_words, learning
from compose.dashboard.pages.parts import (
    PALETTE,
    Drawn,
    card,
    copyable,
    el,
    facts,
    share_axis,
    version,
    when,
)
from compose.dashboard.pages.site import Frame, Site
from streams.fleet.wording import share, short_runs

EMPTY = "No run yet. The controller starts one when windows ask for it."
GREY = "rgba(128,128,128,.28)"


def add(site: Site) -> None:
    @ui.page("/learning")
    def page(request: Request) -> None:
        frame = Frame(site, request, "/learning", "Learning")
        with frame.content:
            el("h1", text="Learning")
            now = Drawn(_draw_now)
            copyable("Request a run at once:", site.command("train", topics=True))
            with card("By round"):
                chart = _Chart()
            runs = Drawn(_draw_runs, "runs")
            runs._box.style("display: flex; flex-direction: column; gap: 16px; width: 100%")

        def show(found: Learning) -> None:
            now.show(found.now)
            chart.show(found)
            runs.show((found.runs, found.metric))

        frame.live(learning, show)


def _draw_now(line: str | None) -> None:
    el("div", "muted", f"Under way: {line}" if line else "No run is under way.")


class _Chart:
    """Held-out figures as a line, updates as bars."""

    def __init__(self) -> None:
        self._chart = ui.echart(_options(), renderer="svg").classes("chart")
        self._chart.props('role=img aria-label="The metric and updates by round"')
        self._empty = el("div", "empty", EMPTY)
        self._shown: object = None

    def show(self, found: Learning) -> None:
        rounds = [
            (run.summary.run, each) for run in found.runs[::-1] for each in run.summary.rounds
        ]
        names = [f"{short_runs(run)}/{each.number}" for run, each in rounds][-60:]
        data: dict[str, list[Any]] = {
            f"{found.metric} on held-out devices": [each.held_out for _, each in rounds][-60:],
            "admitted": [each.admitted for _, each in rounds][-60:],
            "refused": [sum(each.refused.values()) for _, each in rounds][-60:],
            "no answer": [each.failed for _, each in rounds][-60:],
        }
        self._chart.set_visibility(bool(rounds))
        self._empty.set_visibility(not rounds)
        if (names, data) == self._shown:
            return
        self._shown = names, data
        self._chart.options["xAxis"]["data"] = names
        updates = [sum(counts) for counts in zip(*list(data.values())[1:], strict=True)]
        known = [each.held_out for _, each in rounds[-60:] if each.held_out is not None]
        if found.is_share and known:
            self._chart.options["yAxis"][0] |= share_axis(known)
        self._chart.options["yAxis"][1]["max"] = 2 * max(updates, default=1)  # below the line
        bars = zip(list(data.items())[1:], (PALETTE[2], PALETTE[4], "#8a929b"), strict=True)
        (line, values), *_ = data.items()
        self._chart.options["series"] = [
            {"name": line, "type": "line", "data": values, "color": PALETTE[0], "yAxisIndex": 0,
             "symbolSize": 7},
            *({"name": name, "type": "bar", "stack": "updates", "data": counts, "color": shade,
               "yAxisIndex": 1, "barMaxWidth": 26} for (name, counts), shade in bars),
        ]  # fmt: skip
        self._chart.update()


def _options() -> dict[str, Any]:
    line = {"lineStyle": {"color": GREY}}
    return {
        "animation": False,
        "grid": {"left": 46, "right": 40, "top": 34, "bottom": 26},
        "legend": {"type": "scroll", "top": 0, "left": 0},
        "tooltip": {"trigger": "axis", "renderMode": "richText"},
        "xAxis": {"type": "category", "data": [], "axisLine": line},
        "yAxis": [
            {"type": "value", "scale": True, "splitLine": line},
            {"type": "value", "minInterval": 1, "splitLine": {"show": False}, "name": "updates"},
        ],
        "series": [],
    }


def _draw_runs(what: tuple[list[Run], str]) -> None:
    found, metric = what
    for run in found:
        summary = run.summary
        with card(short_runs(f"Run {summary.run}")):
            with ui.element("div").classes("row-of small"):
                when(summary.began_us)
                el("span", "muted", summary.requested or "")
            refused: dict[str, int] = {}
            for each in summary.rounds:
                for reason, count in each.refused.items():
                    refused[reason] = refused.get(reason, 0) + count
            admitted = sum(each.admitted for each in summary.rounds)
            facts(
                {
                    "outcome": short_runs(summary.outcome),
                    "rounds": f"{len(summary.rounds)}, held-out {metric} "
                    + (" → ".join(share(each.held_out) for each in summary.rounds) or "-"),
                    "updates": f"{admitted} admitted, "
                    + (", ".join(f"{n} refused: {why}" for why, n in refused.items())
                       or "none refused"),
                }
            )  # fmt: skip
            if run.gate is not None:
                el("h2", text="What the gate decided").style("margin-top: 12px")
                for line in gate_words(run.gate, metric):
                    ui.label(line)
            if summary.base or summary.model:
                with ui.element("div").classes("row-of small"):
                    version(summary.base or None)
                    el("span", "muted", "→")
                    version(summary.model)
