"""One device: its windows, versions, drift and event account."""

from typing import Any

from fastapi import Request
from nicegui import ui

from compose.dashboard.model.device import Account, DevicePage, Span, device_page
from compose.dashboard.model.recent import Channel, Window
from compose.dashboard.pages.histograms import Shown, draw_histograms
from compose.dashboard.pages.overview import draw_happenings
from compose.dashboard.pages.parts import (
    PALETTE,
    Drawn,
    Lines,
    Rows,
    Text,
    card,
    colour,
    el,
    facts,
    link,
    metric_title,
    version,
    when,
)
from compose.dashboard.pages.site import Frame, Site
from streams.fleet.view import NO_AGENT
from streams.fleet.wording import before_after, counted, share

WINDOWS = (
    ("end_us", "window end", "time"), ("at_us", "reported", "time"),
    ("version", "version", "version"), ("events", "events", "number"),
    ("value", "window", "number"), ("right", "right by labels", "number"),
    ("drifted", "channels drifted", "number"),
)  # fmt: skip
SHOWN = 15


def add(site: Site) -> None:
    @ui.page("/devices/{name}")
    def page(request: Request, name: str) -> None:
        frame = Frame(site, request, "/fleet", name)
        with frame.content:
            with ui.element("div").classes("row-of"):
                el("h1", text=name)
                head = Drawn(_draw_head, "row-of")
            missing = el("div", "card empty", f"No device named {name} has reported. ")
            with ui.element("div").classes("page-parts") as parts:
                shown = _Parts()
            parts.style("display: flex; flex-direction: column; gap: 16px; width: 100%")

        def show(found: DevicePage | None) -> None:
            missing.set_visibility(found is None)
            parts.set_visibility(found is not None)
            if found is not None:
                head.show((found.row.condition, found.row.version, found.row.seen_us))
                shown.show(found)

        frame.live(lambda seen: device_page(seen, name), show)


class _Parts:
    def __init__(self) -> None:
        with ui.element("div").classes("two"):
            with card("Now"):
                self._now = Drawn(_draw_now)
            with card("Event account"):
                self._account = Drawn(_draw_accounts)
        with card("Versions served, by window"):
            self._spans = Drawn(_draw_spans)
        with ui.element("div").classes("two"):
            with ui.element("section").classes("card"):
                self._title = Text("card-title")
                self._values = Lines("What windows tell, by the end of the window")
            with card("Drift from the reference"):
                self._drift = Drawn(_draw_channels)
        with card("Histograms beside the reference, the worst first"):
            self._histograms = Drawn(draw_histograms)
        with card("Versions on the same held-out segments"):
            self._scores = Drawn(_draw_scores)
        with card("Newest windows"):
            empty = "No window has been reported: one closes when its device's time has passed it."
            self._windows = Rows(WINDOWS, "id", empty, "Windows")
        with card("What happened"):
            self._happened = Drawn(draw_happenings)

    def show(self, found: DevicePage) -> None:
        self._now.show(_now(found))
        self._account.show(found.accounts)
        self._spans.show(found.spans)
        self._title.show(f"{metric_title(found.window_metric, found.lower_is_better)}, by window")
        points = [[w.end_us / 1000, w.value] for w in found.windows]
        series = {found.window_metric: (PALETTE[0], points)} if points else {}
        self._values.show(series, shares=not found.lower_is_better)
        self._drift.show((found.channels, found.drift is not None))
        self._histograms.show(Shown.of(found))
        self._scores.show([(s.version, s.answers, share(s.score, s.labelled),
                            before_after(s.before, s.after)) for s in found.scores])  # fmt: skip
        self._windows.head(value=found.window_metric, right="by true labels")
        self._windows.show([_window(w) for w in reversed(found.reports[-SHOWN:])])
        self._happened.show(found.happenings)


def _draw_head(what: tuple[str, str, int]) -> None:
    condition, model, seen_us = what
    el("span", f"is is-{condition}", condition)
    version(model)
    with ui.element("span").classes("muted"):
        el("span", text="last seen ")
        when(seen_us, "ago")


def _now(found: DevicePage) -> dict[str, str]:
    row = found.row
    if row.activity == NO_AGENT:
        return {"activity": "no agent: its events come from a producer",
                "events scored": f"{row.produced:,}"}  # fmt: skip
    pairs = {
        "activity": row.activity,
        "events a second": f"{row.events_per_s:.1f}",
        f"{found.metric} on labelled answers": share(row.score),
        "answers take": f"{found.latency_p50_us:.0f} µs, {found.latency_p99_us:.0f} µs at the "
        "99th percentile"
        if found.latency_p50_us
        else "-",
        "samples": f"{found.samples:,}, {found.true_labels:,} with a true label, "
        f"{found.teacher_labels:,} with the teacher's",
        "previous version": found.previous or "none",
    }
    if found.held_back:
        pairs["does not train"] = found.held_back
    if found.kept is not None:
        pairs["answers with"] = f"{found.kept.text}, against {found.kept.against}"
    if (own := found.personal) is not None:
        answers = "answers" if own.serving else "does not answer"
        pairs["personal model"] = (
            f"{own.model} {answers}: {own.correct} of {own.held_out} held-out samples right, "
            f"{own.base} {own.base_correct}"
        )
    for model, reason in found.refused.items():
        pairs[f"refuses {model}"] = reason
    return pairs


def _draw_now(pairs: dict[str, str]) -> None:
    facts(pairs)


def _draw_accounts(accounts: list[Account]) -> None:
    if not accounts:
        el("div", "empty", "A device without an agent keeps no account.")
    for account in accounts[:3]:
        name = "this epoch" if account.current else "ended"
        with ui.element("div").classes("row-of"):
            el("span", "mono muted", account.epoch)
            el("span", "tag", name)
            good = account.balanced
            el("span", "tag good" if good else "tag bad", "balances" if good else "off")
        dropped = ", ".join(f"{n:,} {why}" for why, n in account.dropped.items()) or "0"
        skipped = ", ".join(f"{n:,} {why}" for why, n in account.skipped.items()) or "0"
        facts(
            {
                "produced": f"{account.produced:,}",
                "= delivered": f"{account.delivered:,}",
                "+ dropped": dropped,
                "+ pending": f"{account.pending:,}",
                "made no event": skipped,
            }
        )


def _draw_spans(spans: list[Span]) -> None:
    if not spans:
        el("div", "empty", "No window yet.")
        return
    with ui.element("div").classes("strip").props("role=img aria-label=versions"):
        for span in spans:
            made = ui.element("div").style(
                f"flex: {span.windows}; background: {colour(span.version)}"
            )
            made.tooltip(f"{span.version}: {counted(span.windows, 'window')}")
    with ui.element("div").classes("row-of small"):
        for span in spans:
            version(span.version)
            with ui.element("span").classes("muted"):
                el("span", text=f"{counted(span.windows, 'window')} from ")
                when(span.from_us)


def _draw_channels(what: tuple[list[Channel], bool]) -> None:
    channels, watched = what
    if not channels:
        text = "No channel is far from the reference." if watched else "Drift is not watched here."
        el("div", "empty", f"{text} A window's report has it once enough segments were seen.")
        return
    for channel in channels:
        share_of = min(1.0, channel.psi / max(2 * channel.threshold, 1e-9))
        with ui.element("div").style("margin-bottom: 7px"):
            with ui.element("div").classes("row-of small"):
                el("b", text=f"{channel.channel} ({channel.kind})")
                el("span", "is is-drifting" if channel.alarm else "muted",
                   f"PSI {channel.psi:.3f}, alarm from {channel.threshold:.3f}")  # fmt: skip
            line = "var(--warn)" if channel.alarm else "var(--accent)"
            with ui.element("div").classes("meter"):
                ui.element("div").style(f"width: {100 * share_of:.0f}%; background: {line}")


def _draw_scores(found: list[tuple[str, int, str, str]]) -> None:
    if not found:
        el("div", "empty", "No answer has been counted yet.")
        return
    for model, answers, right, pair in found:
        with ui.element("div").classes("row-of"):
            version(model)
            el("span", "muted", f"{counted(answers, 'answer')}; on labelled ones {right}; "
               f"first version → this one {pair}")  # fmt: skip
    link("All devices", "/fleet", "small")


def _window(window: Window) -> dict[str, Any]:
    right = window.correct / window.labelled if window.labelled else None
    return {
        "id": f"{window.window_us}/{window.revision}",
        "at_us": window.at_us,
        "end_us": window.end_us,
        "version": window.release,
        "colour": colour(window.release),
        "events": window.events,
        "value": share(window.value),
        "right": share(right, window.labelled),
        "drifted": "-" if window.drifted is None else f"{window.drifted:.0%}",
    }
