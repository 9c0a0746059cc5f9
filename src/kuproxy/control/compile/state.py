"""What every part of the compiler works on: the tables, the generation of the last change, and whose index is whose."""

from collections.abc import Callable, Iterator

from kuproxy.control.compile.records import VipRecord
from kuproxy.dataplane.layout import MAX_VIPS, T_GENERATION, Tables
from kuproxy.dataplane.writer import IndexPool, Retirement
from kuproxy.model.vip import VipKey


class TableState:
    """Publishes changes, and keeps what readers may still look at until they have seen the next one."""

    def __init__(self, tables: Tables):
        self.tables = tables
        # Tables that a control process has written before: their contents are to be adopted, never reset.
        self._generation = int(tables.header[T_GENERATION])
        self.inherited = self._generation != 0
        self._retirement = Retirement()
        self._vip_indices = IndexPool(MAX_VIPS, "VIPs")
        self._records: dict[VipKey, VipRecord] = {}
        self._by_index: dict[int, VipRecord] = {}

    @property
    def generation(self) -> int:
        """Of the last published change."""
        return self._generation

    def _publish(self) -> int:
        self._generation += 1
        self.tables.header[T_GENERATION] = self._generation
        return self._generation

    def _retire(self, action: Callable[[], None]) -> None:
        self._retirement.add(self._generation + 1, action)

    def records(self) -> Iterator[VipRecord]:
        """Every VIP in use, then removed ones that still drain, by index."""
        for index in sorted(self._by_index):
            yield self._by_index[index]

    def record_at(self, index: int) -> VipRecord | None:
        """The VIP that has this index now."""
        return self._by_index.get(index)

    def record(self, key: VipKey) -> VipRecord | None:
        """The VIP in use under this key."""
        return self._records.get(key)
