"""Data quality: dead letters with their reason, what can be decoded of them, and replay."""

from typing import Any

from fastapi import Request
from nicegui import ui
from nicegui.events import GenericEventArguments

from compose.dashboard.model.letters import LetterDetail, Quality, letter_detail, quality
from compose.dashboard.pages.parts import Drawn, Rows, card, copyable, el, facts
from compose.dashboard.pages.site import Frame, Site
from compose.reports.dead_letters import place

COLUMNS = (
    ("offset", "offset", "offset"), ("at_us", "when", "time"), ("reason", "reason", "text"),
    ("key", "key", "wrap"), ("source", "message on events", "text"), ("bytes", "bytes", "number"),
    ("detail", "detail", "wrap"),
)  # fmt: skip
EMPTY = "No dead letters: every message of events could be decoded and scored."
CHOOSE = "Choose an offset to see its headers and what can be decoded."
OFFSET = (
    '<q-td :props="props"><button type="button" class="plain-button" '
    "@click=\"$parent.$emit('open', props.value)\">{{ props.value }}</button></q-td>"
)


def add(site: Site) -> None:
    @ui.page("/quality")
    def page(request: Request) -> None:
        frame = Frame(site, request, "/quality", "Data quality")
        chosen: list[int] = []
        with frame.content:
            el("h1", text="Data quality")
            with card("By reason"):
                counts = Drawn(_draw_counts, "row-of")
            with card("Newest dead letters"):
                rows = Rows(COLUMNS, "offset", EMPTY, "Dead letters")
                rows.table.add_slot("body-cell-offset", OFFSET)
                hint = el("div", "muted small", CHOOSE)
            with card("One dead letter") as one:
                detail: Drawn[LetterDetail | str] = Drawn(lambda x: _draw_letter(site, x))

        def choose(event: GenericEventArguments) -> None:
            chosen[:] = [int(event.args)]
            one.set_visibility(True)
            detail.show(frame.site.watch.look(look))

        def look(seen: Any) -> LetterDetail | str:
            letters = seen.beside.letters
            found = letter_detail(site.task, letters, chosen[0]) if chosen else None
            return found or "none"

        rows.table.on("open", choose)

        def show(found: tuple[Quality, LetterDetail | str]) -> None:
            counts.show((found[0].by_reason, found[0].unreadable))
            hint.set_visibility(bool(found[0].letters))
            one.set_visibility(bool(chosen))
            rows.show(
                [row.model_dump() | {"source": place(row.source)} for row in found[0].letters]
            )
            detail.show(found[1])

        frame.live(lambda s: (quality(s.beside.letters, s.view.unreadable), look(s)), show)


def _draw_counts(what: tuple[dict[str, int], int]) -> None:
    counts, unreadable = what
    for reason, count in counts.items():
        el("span", "tag", f"{reason} {count:,}")
    if unreadable:
        el("span", "tag", f"unreadable on other topics {unreadable:,}")
    if not counts and not unreadable:
        el("span", "muted", "Nothing was refused.")


def _draw_letter(site: Site, found: LetterDetail | str) -> None:
    if isinstance(found, str):
        el("div", "empty", CHOOSE)
        return
    letter = found.letter
    about = {"offset": str(letter.offset), "reason": letter.reason, "detail": letter.detail}
    facts(
        {
            **about,
            "key": letter.key,
            "message on events": place(letter.source),
            "bytes": f"{letter.bytes:,}",
        }
    )
    el("h2", text="Its headers").style("margin-top: 10px")
    facts(found.headers)
    el("h2", text="Its first rows").style("margin-top: 10px")
    for row in found.rows:
        el("div", "mono", ", ".join(f"{name}: {value}" for name, value in row.items()))
    el("h2", text="Its first bytes").style("margin-top: 10px")
    el("div", "mono", found.head or "it has no value")
    replay = site.command("dead-letters replay", str(letter.offset), topics=True)
    copyable("Send it again, once its cause is fixed:", replay)
