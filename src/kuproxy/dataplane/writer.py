"""The writer's side of Tables: places in the arenas, indices, the match table's growth, and what must wait.

Used by the control process alone. Readers may still look at whatever was published, so nothing is reused before every
worker has passed a quiescent point: `Retirement` keeps such things until their generation is acknowledged.
"""

from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping

import numpy as np

from kuproxy.dataplane.layout import T_MATCH, T_VIP_MATCH, Tables
from kuproxy.dataplane.match import TOMBSTONE, match_clear, match_copy, match_delete, match_put
from kuproxy.errors import TableFullError


class Arena:
    """Blocks of 2^n entries in an array of `capacity` entries: freed blocks are kept by size, split but never merged.

    Services come and go with similar ring sizes, so the simple scheme wastes little. Offset 0 is never given out: a
    word of 0 means "nothing" in the tables.
    """

    def __init__(self, capacity: int, what: str):
        self._capacity = capacity
        self._what = what
        self._top = 1
        self._free: dict[int, list[int]] = {}
        self.used = 0  # entries in blocks that are out

    @property
    def room(self) -> int:
        """Entries that were never given out: what is certain to be allocated, in whatever sizes."""
        return self._capacity - self._top

    def adopt(self, blocks: Iterable[tuple[int, int]]) -> None:
        """These blocks (offset, log2) are out already, and no others; for an arena that has given out none."""
        for offset, log2 in sorted(blocks):
            self._keep_gap(self._top, offset)
            self._top = offset + (1 << log2)
            self.used += 1 << log2

    def _keep_gap(self, first: int, end: int) -> None:
        while first < end:
            log2 = (end - first).bit_length() - 1
            self._free.setdefault(log2, []).append(first)
            first += 1 << log2

    def allocate(self, log2: int) -> int:
        """Offset of a block of 2^log2 entries, with whatever its last use left in it."""
        size = 1 << log2
        larger = min((each for each, blocks in self._free.items() if blocks and each >= log2), default=-1)
        if larger >= 0:
            offset = self._free[larger].pop()
            self._keep_gap(offset + size, offset + (1 << larger))
        else:
            if self._top + size > self._capacity:
                raise TableFullError(f"no room for {size} more {self._what}; {self._capacity} in all")
            offset = self._top
            self._top += size
        self.used += size
        return offset

    def free(self, offset: int, log2: int) -> None:
        """Give a block back."""
        self._free.setdefault(log2, []).append(offset)
        self.used -= 1 << log2


class IndexPool:
    """Indices 1 .. capacity - 1; 0 means "none" everywhere."""

    def __init__(self, capacity: int, what: str):
        self._capacity = capacity
        self._what = what
        self._next = 1
        self._free: list[int] = []

    def adopt(self, used: Collection[int]) -> None:
        """These are out already, and no others; for a pool that has given out none."""
        self._next = max(used, default=0) + 1
        out = set(used)
        self._free = [index for index in range(self._next - 1, 0, -1) if index not in out]

    @property
    def used(self) -> int:
        """Indices that are out."""
        return self._next - 1 - len(self._free)

    @property
    def room(self) -> int:
        """Indices that are left."""
        return self._capacity - 1 - self.used

    def allocate(self) -> int:
        """The index freed last, or a new one."""
        if self._free:
            return self._free.pop()
        if self._next == self._capacity:
            raise TableFullError(f"{self._capacity - 1} {self._what} at most")
        self._next += 1
        return self._next - 1

    def free(self, index: int) -> None:
        """Give an index back."""
        self._free.append(index)


class Retirement:
    """Things to do once every worker has acknowledged a generation."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[int, Callable[[], None]]] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, generation: int, action: Callable[[], None]) -> None:
        """Run `action` when `generation` has been seen by all. Generations must not decrease."""
        self._waiting.append((generation, action))

    def run(self, acknowledged: int) -> None:
        """Run what waited for generations up to `acknowledged`."""
        while self._waiting and self._waiting[0][0] <= acknowledged:
            self._waiting.popleft()[1]()


def match_arena(tables: Tables) -> Arena:
    """The room for all match tables; those that are published have theirs."""
    arena = Arena(len(tables.match), "match entries")
    words = [int(tables.header[word]) for word in (T_VIP_MATCH, T_MATCH)]
    arena.adopt((word >> 8, word & 0xFF) for word in words if word)
    return arena


class MatchWriter:
    """Keeps a match table at most half full (tombstones included), growing beside the live one.

    `word` is the header word that publishes it; tables share the arena that `match_arena` makes. A table that is
    published already, by a writer that has ended, is written on.
    """

    def __init__(self, tables: Tables, word: int, arena: Arena, retire: Callable[[Callable[[], None]], None]):
        self._tables = tables
        self._word = word
        self._retire = retire
        self._arena = arena
        published = int(tables.header[word])
        if published:
            self._location, self._log2 = np.uint64(published), published & 0xFF
            keys = self._slots()["key"]
            self._taken = int(np.count_nonzero(keys))  # slots that are not empty: entries and tombstones
            self.entries = self._taken - int(np.count_nonzero(keys == TOMBSTONE))
        else:
            self._log2 = 6
            self._location = self._new_table(self._log2)
            self._taken = self.entries = 0
            tables.header[word] = self._location

    def _slots(self) -> np.ndarray:
        offset = int(self._location) >> 8
        return self._tables.match[offset : offset + (1 << self._log2)]

    def items(self) -> dict[tuple[int, int, int], int]:
        """Every entry: (hi, lo, key) → value."""
        slots = self._slots()
        slots = slots[(slots["key"] != 0) & (slots["key"] != TOMBSTONE)]
        columns = (slots[name].tolist() for name in ("hi", "lo", "key", "value"))
        return {(hi, lo, key): value for hi, lo, key, value in zip(*columns, strict=True)}

    def make_equal(self, wanted: Mapping[tuple[int, int, int], int]) -> int:
        """Hold these entries and no others; returns how many had to be put right."""
        present = self.items()
        wrong = [place for place in present if place not in wanted]
        missing = [place for place, value in wanted.items() if present.get(place) != value]
        for hi, lo, key in wrong:
            self.delete(np.uint64(hi), np.uint64(lo), np.uint64(key))
        for place in missing:
            hi, lo, key = place
            self.put(np.uint64(hi), np.uint64(lo), np.uint64(key), wanted[place])
        return len(wrong) + len(missing)

    def _new_table(self, log2: int) -> np.uint64:
        location = np.uint64(self._arena.allocate(log2) << 8 | log2)
        match_clear(self._tables.match, location)
        return location

    def _make_room(self) -> None:
        if self._taken * 2 < 1 << self._log2:
            return
        log2 = 6
        while self.entries * 8 >= 3 << log2:  # room to grow by a third before the next time
            log2 += 1
        old, old_log2 = self._location, self._log2
        self._location = self._new_table(log2)
        self._taken = match_copy(self._tables.match, old, self._location)
        self._log2 = log2
        self._tables.header[self._word] = self._location
        self._retire(lambda: self._arena.free(int(old) >> 8, old_log2))

    @property
    def room(self) -> int:
        """Entries that are certain to find a place, growth included: the table and its successor are half empty."""
        return self._arena.room // 8

    def put(self, hi: np.uint64, lo: np.uint64, key: np.uint64, value: int) -> None:
        """Insert or change an entry."""
        self._make_room()
        new = match_put(self._tables.match, self._location, hi, lo, key, value)
        self._taken += new
        self.entries += new

    def delete(self, hi: np.uint64, lo: np.uint64, key: np.uint64) -> None:
        """Remove an entry; it must be there."""
        if not match_delete(self._tables.match, self._location, hi, lo, key):
            raise KeyError(f"no match entry {int(hi):x} {int(lo):x} {int(key):x}")
        self.entries -= 1
