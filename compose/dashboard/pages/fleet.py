"""All devices: searched, grouped, sorted, one page at a time."""

from typing import Any

from fastapi import Request
from nicegui import ui
from nicegui.events import GenericEventArguments, ValueChangeEventArguments

from compose.dashboard.model.fleet import (
    DESCENDING,
    OF_TASK,
    SORTS,
    FleetPage,
    FleetQuery,
    fleet_page,
    groups_of,
)
from compose.dashboard.model.observed import CONDITIONS, Observed
from compose.dashboard.pages.parts import Drawn, Rows, Text, card, chip, colour, el, spark, version
from compose.dashboard.pages.site import Frame, Site
from streams.fleet.view import NO_AGENT
from streams.fleet.wording import share

COLUMNS = (
    ("device", "device", "device"), ("condition", "state", "condition"),
    ("activity", "activity", "wrap"), ("version", "serves", "version"),
    ("events_per_s", "events/s", "number"),
    ("pending", "pending", "number"), ("dropped", "dropped", "number"),
    ("score", "accuracy", "number"), ("last_window", "last window", "number"),
    ("trend", "last windows", "trend"),
    ("drift", "drift", "text"), ("seen_us", "last seen", "ago"),
)  # fmt: skip
EMPTY = "No device matches. Without a search and a group all devices are listed."
HEADER = (  # sorted with the keyboard too
    '<q-th :props="props" :tabindex="props.col.sortable ? 0 : -1" '
    '@keydown.enter="props.sort(props.col)">{{ props.col.label }}</q-th>'
)
NOBODY = "No device has reported yet: start one with tidewheel edge run."


def add(site: Site) -> None:
    @ui.page("/fleet")
    def page(request: Request, group: str = "", search: str = "", sort: str = "") -> None:
        frame = Frame(site, request, "/fleet", "Fleet")
        query = FleetQuery(
            group=group[:100], search=search[:200], sort=sort if sort in SORTS else "condition"
        )
        listing = _Listing(frame, query.model_copy(update={"descending": query.sort in DESCENDING}))
        frame.live(listing.look, listing.show)


class _Listing:
    """The list and its controls; `query` is what they are set to."""

    def __init__(self, frame: Frame, query: FleetQuery) -> None:
        self.query = query
        self._frame, self._of_task = frame, groups_of(frame.site.task)
        with frame.content:
            el("h1", text="Fleet")
            with card("Groups"):
                self._groups = Drawn(self._draw_groups, "row-of")
            with ui.element("section").classes("card"):
                with ui.element("div").classes("row-of"):
                    field = ui.input(value=query.search, on_change=self._search).classes("search")
                    field.props("dense outlined clearable debounce=250 maxlength=200 type=search")
                    field.props('label="Search by name, version or error"').style("width: 280px")
                    self._count = Text("muted small")
                self._rows = Rows(COLUMNS, "device", EMPTY, "Devices")
                self._sortable()
                self._pages()

    def _sortable(self) -> None:
        """The server sorts: the table shows one page and asks for another order."""
        table = self._rows.table
        for column in table.columns:
            column["sortable"] = column["name"] in SORTS
        table.pagination = {
            "sortBy": self.query.sort, "descending": self.query.descending, "page": 1,
            "rowsPerPage": self.query.size, "rowsNumber": 1,
        }  # fmt: skip
        table.add_slot("header-cell", HEADER)
        table.on("request", self._order)
        table.update()

    def _pages(self) -> None:
        with ui.element("div").classes("row-of") as self._pager:
            self._before = self._button("Previous", lambda: self._turn(-1))
            self._page = Text("small")
            self._after = self._button("Next", lambda: self._turn(1))

    def _button(self, text: str, act: Any) -> Any:
        return el("button", "plain-button", text).props("type=button").on("click", act)

    def look(self, seen: Observed) -> FleetPage:
        return fleet_page(seen, self.query, self._of_task)

    def _ask(self, **changes: Any) -> None:
        self.query = self.query.model_copy(update={"page": 1, **changes})
        self.show(self._frame.site.watch.look(self.look))

    def _search(self, event: ValueChangeEventArguments[Any]) -> None:
        self._ask(search=str(event.value or "")[:200])

    def _turn(self, by: int) -> None:
        self._ask(page=max(1, self.query.page + by))

    def _order(self, event: GenericEventArguments) -> None:
        asked = event.args.get("pagination", {}) if isinstance(event.args, dict) else {}
        sort = asked.get("sortBy")
        same = sort == self.query.sort or sort not in SORTS
        sort = self.query.sort if same else sort
        descending = not self.query.descending if same else sort in DESCENDING
        pagination = {**self._rows.table.pagination, "sortBy": sort, "descending": descending}
        self._rows.table.pagination = pagination
        self._ask(sort=sort, descending=descending)

    def _draw_groups(self, what: tuple[FleetPage, str]) -> None:
        found, chosen = what
        if not found.total:
            el("span", "muted", NOBODY)
            return
        names = [("", f"all {found.total:,}")]
        names += [(c, f"{c} {found.conditions[c]:,}") for c in CONDITIONS if found.conditions[c]]
        names += [(f"{OF_TASK}{group}", f"{group} {n:,}") for group, n in found.groups.items()]
        names += [("refusing", f"refusing {found.refusing:,}")] if found.refusing else []
        for name, text in names:
            shown = f"is is-{name}" if name in CONDITIONS else ""
            self._chip(name, chosen, lambda text=text, shown=shown: el("span", shown, text))
        for name, count in list(found.versions.items())[:12]:

            def draw(name: str = name, count: int = count) -> None:
                version(name)
                el("span", "muted", f"{count:,}")

            self._chip(name, chosen, draw)

    def _chip(self, name: str, chosen: str, draw: Any) -> None:
        with chip("", name == chosen, lambda: self._ask(group=name)):
            draw()

    def show(self, found: FleetPage) -> None:
        self.query = found.query
        plain = {"rows": [], "matching": 0, "pages": 0, "query": FleetQuery()}
        self._groups.show((found.model_copy(update=plain), self.query.group))
        self._rows.show([_row(row.model_dump()) for row in found.rows])
        self._rows.head(score=found.metric)
        self._count.show(
            f"{found.matching:,} of {found.total:,} devices; windows show the {found.window_metric}"
        )
        self._page.show(f"page {found.query.page:,} of {found.pages:,}")
        self._pager.set_visibility(found.pages > 1)


def _row(row: dict[str, Any]) -> dict[str, Any]:
    figures = {
        "events_per_s": f"{row['events_per_s']:.1f}",
        "pending": f"{row['pending']:,}",
        "dropped": f"{row['dropped']:,}",
        "score": share(row["score"]),
        "last_window": share(row["last_window"]),
    }
    if row["activity"] == NO_AGENT:  # nobody reports them
        figures |= dict.fromkeys(("events_per_s", "pending", "dropped"), "-")
    return {**row, **figures, "trend": spark(row["trend"]), "colour": colour(row["version"])}
