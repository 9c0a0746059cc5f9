"""The terminal application.  Only this module needs textual (the extra `tui`).

Once a second a thread asks the daemon for what is in view, and nothing else; the daemon's answers cost it the same for
one viewer and for many.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from rich.text import Text
from textual import on, work
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.coordinate import Coordinate
from textual.widgets import DataTable, Footer, Input, Static, TabbedContent, TabPane

from kuproxy.client import Client, Refusal
from kuproxy.top.source import (
    MOST_ROWS,
    NUMBERS,
    POD_COLUMNS,
    SORTS,
    TABLES,
    Row,
    Source,
    VipKey,
    drop_rows,
    headline,
    worker_rows,
)

__all__ = ["Top"]

INTERVAL_S = 1.0
_TITLES = {"services": "Services", "flows": "Flows", "drops": "Drops", "workers": "Workers"}
_HINTS = {
    "services": "part of a service's name or address",
    "flows": "client ADDRESS, vip PREFIX, pod ADDRESS, state STATE, in any order",
}


class Rows(DataTable[Text]):
    """A table that is brought up to date: the cursor stays on its row, wherever that moves."""

    def __init__(self, columns: Sequence[str], name: str) -> None:
        super().__init__(id=name, cursor_type="row", zebra_stripes=True)
        self._names = columns
        self.rows_shown: list[Row] = []

    def on_mount(self) -> None:
        self.add_columns(*(self._cell(name, name) for name in self._names))

    @staticmethod
    def _cell(name: str, text: str) -> Text:
        """In a column of this name."""
        return Text(text, justify="right" if name in NUMBERS else "left", no_wrap=True)

    def show(self, rows: list[Row]) -> None:
        former, self.rows_shown = self.rows_shown, rows
        if [row.key for row in former] == [row.key for row in rows]:
            for number, (old, new) in enumerate(zip(former, rows, strict=True)):
                for column, (before, now) in enumerate(zip(old.cells, new.cells, strict=True)):
                    if before != now:
                        cell = self._cell(self._names[column], now)
                        self.update_cell_at(Coordinate(number, column), cell, update_width=True)
            return
        at = former[self.cursor_row].key if self.cursor_row < len(former) else None
        # A cursor on the first row means "the first one, whichever it is".
        keep = at if self.cursor_row > 0 else None
        scrolled = self.scroll_y
        self.clear()
        for row in rows:
            self.add_row(*map(self._cell, self._names, row.cells), key=row.key)
        place = next((number for number, row in enumerate(rows) if row.key == keep), 0)
        self.move_cursor(row=place, scroll=False)
        self.scroll_to(y=scrolled, animate=False)

    @property
    def chosen(self) -> Row | None:
        """The row under the cursor."""
        return self.rows_shown[self.cursor_row] if self.cursor_row < len(self.rows_shown) else None


class Top(App[int]):
    """`ku top`."""

    TITLE = "ku top"
    ENABLE_COMMAND_PALETTE = False
    CSS = """
    Screen { overflow: hidden; }
    #headline { height: 1; padding: 0 1; background: $panel; }
    #note { height: 1; padding: 0 1; color: $text-muted; }
    #note.bad { color: $error; }
    Input { display: none; height: 3; }
    Input.open { display: block; }
    #tabs { height: 1fr; }
    TabPane { padding: 0; }
    #pods-title { padding: 0 1; }
    Rows { height: 1fr; }
    #pods-view { display: none; }
    #pods-view.open { display: block; }
    #services-view.closed { display: none; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        *(
            Binding(str(number), f"tab('{name}')", title)
            for number, (name, title) in enumerate(_TITLES.items(), start=1)
        ),
        Binding("slash", "find", "Find"),
        Binding("escape", "back", "Back"),
        *(
            Binding(key, f"sort('{by}')", f"by {by}", show=False)
            for key, by in zip("pbnfoa", SORTS, strict=True)
        ),
        Binding("q", "quit", "Quit"),
    ]

    def __init__(self, client: Client, interval_s: float = INTERVAL_S) -> None:
        super().__init__()
        self._source = Source(client)
        self._interval_s = interval_s
        self._by = "packets"
        self._find = ""
        self._wanted = ""  # words of `show flows`
        self._vip: VipKey | None = None  # whose pods are open

    def compose(self) -> ComposeResult:
        yield Static("", id="headline", markup=False)
        with TabbedContent(id="tabs", initial="services"):
            for name, title in _TITLES.items():
                with TabPane(title, id=name):
                    if name in _HINTS:
                        yield Input(placeholder=_HINTS[name], id=f"{name}-find")
                    with Vertical(id=f"{name}-view"):
                        yield Rows(TABLES[name], f"{name}-table")
                    if name == "services":
                        with Vertical(id="pods-view"):
                            yield Static("", id="pods-title", markup=False)
                            yield Rows(POD_COLUMNS, "pods-table")
        yield Static("", id="note", markup=False)
        yield Footer()

    def on_mount(self) -> None:
        self.set_interval(self._interval_s, self.look)
        self.query_one("#services-table").focus()
        self.look()

    # ---------------------------------------------------------------------------------------------- looking

    @property
    def _tab(self) -> str:
        return self.query_one("#tabs", TabbedContent).active

    def _table(self, name: str) -> Rows:
        return self.query_one(f"#{name}-table", Rows)

    def look(self) -> None:
        if self._ending:
            return
        self._look(self._tab, self._find, self._by, self._wanted, self._vip)

    @work(thread=True, exclusive=True)
    def _look(self, tab: str, find: str, by: str, wanted: str, vip: VipKey | None) -> None:
        """In a thread: ask, then let the answer be shown."""
        try:
            overview = self._source.overview()
            note = ""
            tables = {"drops": drop_rows(overview), "workers": worker_rows(overview)}
            title = ""
            if tab == "services" and vip is not None:
                title, tables["pods"] = self._source.pods(vip)
            elif tab == "services":
                tables["services"], total = self._source.services(find, by)
                note = f"by {by}" if total <= MOST_ROWS else f"by {by}; the first {MOST_ROWS} of {total}"
            elif tab == "flows":
                tables["flows"], more = self._source.flows(wanted)
                note = f"{len(tables['flows'])} flows{', and there are more' if more else ''}"
        except Refusal as refusal:
            self.call_from_thread(self._say, " ".join(str(refusal).splitlines()), True)
            return
        asked = (tab, find, by, wanted, vip)
        self.call_from_thread(self._show, asked, headline(overview), tables, title, note)

    def _show(
        self, asked: tuple[object, ...], line: str, tables: dict[str, list[Row]], title: str, note: str
    ) -> None:
        if self._ending or asked != (self._tab, self._find, self._by, self._wanted, self._vip):
            return  # the user has gone on meanwhile
        self.query_one("#headline", Static).update(line)
        for name, rows in tables.items():
            self._table(name).show(rows)
        if title:
            self.query_one("#pods-title", Static).update(f"Pods of {title}")
        self._say(note)

    @property
    def _ending(self) -> bool:
        """Whether the widgets are being taken down; the timer, and an answer, may come as late as that."""
        return not self.query("#tabs") or not self.query("#note")

    def _say(self, text: str, bad: bool = False) -> None:
        if self._ending:
            return
        note = self.query_one("#note", Static)
        note.update(text)
        note.set_class(bad, "bad")

    # ---------------------------------------------------------------------------------------------- actions

    def action_tab(self, name: str) -> None:
        self.query_one("#tabs", TabbedContent).active = name

    @on(TabbedContent.TabActivated)
    def _tab_changed(self) -> None:
        name = "pods" if self._tab == "services" and self._vip is not None else self._tab
        self._table(name).focus()
        self._say("")
        self.look()

    def action_sort(self, by: str) -> None:
        self._by = by
        self.look()

    @on(DataTable.HeaderSelected, "#services-table")
    def _head_chosen(self, event: DataTable.HeaderSelected) -> None:
        by = {"Service": "name", "Packets/s": "packets", "Bit/s": "bits", "New flows/s": "new_flows",
              "Flows": "flows", "Pods": "pods", "Owner": "name"}  # fmt: skip
        self.action_sort(by[event.label.plain])

    def action_find(self) -> None:
        if self._tab in _HINTS and self._vip is None:
            field = self.query_one(f"#{self._tab}-find", Input)
            field.add_class("open")
            field.focus()

    @on(Input.Changed, "#services-find")
    def _find_changed(self, event: Input.Changed) -> None:
        self._find = event.value
        self.look()

    @on(Input.Submitted)
    def _find_entered(self, event: Input.Submitted) -> None:
        if self._tab == "flows":
            self._wanted = event.value
        self._table(self._tab).focus()
        self.look()

    @on(DataTable.RowSelected, "#services-table")
    def _opened(self) -> None:
        row = self._table("services").chosen
        if row is not None:
            self._set_vip(row.vip)

    async def action_back(self) -> None:
        """Out of the pods, else out of the search."""
        if self._vip is not None and self._tab == "services":
            self._set_vip(None)
        elif self._tab in _HINTS:
            field = self.query_one(f"#{self._tab}-find", Input)
            field.value = ""
            field.remove_class("open")
            if self._tab == "flows":
                self._wanted = ""
            self._table(self._tab).focus()
            self.look()

    def _set_vip(self, vip: VipKey | None) -> None:
        self._vip = vip
        self.query_one("#services-view").set_class(vip is not None, "closed")
        self.query_one("#services-find").display = vip is None and bool(self._find)
        self.query_one("#pods-view").set_class(vip is not None, "open")
        self.query_one("#pods-title", Static).update("")
        self._table("pods").show([])
        self._table("services" if vip is None else "pods").focus()
        self.look()
