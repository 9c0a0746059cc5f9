"""The maps that the steering programs share, and how user space reads and writes them."""

from __future__ import annotations

import struct
from typing import NamedTuple

from .bpf import Map, MapKind
from .keys import FRAGMENT_KEY_SIZE, PREFIX_KEY_SIZE, RELATED_SIZE, STEER_KEY_SIZE, Count

__all__ = ["PRESENT", "Stats", "SteeringMaps"]

# A hit says all there is to say; the word is for flags to come.
PRESENT = struct.pack("=I", 1)

# 10,000 services of 10 pods each need about 240,000 entries, and as many again while all of them are replaced; memory
# is taken as entries come, but for 16 MiB.
STEER_CAPACITY = 1 << 20
PREFIX_CAPACITY = 1 << 16
INTERFACE_CAPACITY = 1 << 12
RELATED_CAPACITY = 1 << 15  # a bridge has 1024 ports at most (BR_MAX_PORTS)
# Datagrams whose fragments are on their way; the ones that were longest unused give way. Memory is taken at once, about
# 7 MB, so only several workers have this map.
FRAGMENT_CAPACITY = 1 << 16


class Stats(NamedTuple):
    """Packets that the programs have looked at, over all interfaces and CPUs."""

    forward: int  # brought up: for a VIP or node port
    returned: int  # brought up: from a pod
    foreign: int  # left alone
    refused: int  # left alone: in a pod's name, where this node does not send to that pod


class SteeringMaps:
    """Created together, closed together. `workers`: how many the programs choose from."""

    def __init__(self, workers: int = 1) -> None:
        self._all: dict[str, Map] = {}
        try:
            self.steer = self._make(MapKind.HASH, "steer", STEER_KEY_SIZE, 4, STEER_CAPACITY)
            self.prefixes = self._make(MapKind.LPM_TRIE, "prefixes", PREFIX_KEY_SIZE, 4, PREFIX_CAPACITY)
            self.config = self._make(MapKind.ARRAY, "config", 4, 4, 1)
            self.interfaces = self._make(MapKind.HASH, "interfaces", 4, 4, INTERFACE_CAPACITY)
            self.related = self._make(MapKind.HASH, "related", 4, RELATED_SIZE, RELATED_CAPACITY)
            self.counts = self._make(MapKind.PERCPU_ARRAY, "counts", 4, 8, len(Count))
            if workers > 1:
                self._make(MapKind.LRU_HASH, "fragments", FRAGMENT_KEY_SIZE, 8, FRAGMENT_CAPACITY)
        except BaseException:
            self.close()
            raise

    def _make(self, kind: MapKind, name: str, key_size: int, value_size: int, capacity: int) -> Map:
        self._all[name] = Map(kind, f"ku_{name}", key_size, value_size, capacity)
        return self._all[name]

    def by_name(self) -> dict[str, Map]:
        """As `Program.load` wants them."""
        return dict(self._all)

    def write_config(self, word: int) -> None:
        """`keys.ConfigBit`s."""
        self.config.update({struct.pack("=I", 0): struct.pack("=I", word)})

    def read_stats(self) -> Stats:
        return Stats(*(self._read_count(index) for index in Count))

    def _read_count(self, index: Count) -> int:
        values = self.counts.lookup(struct.pack("=I", index)) or b""
        return sum(struct.unpack(f"={len(values) // 8}Q", values))

    def close(self) -> None:
        for each in self._all.values():
            each.close()
        self._all.clear()
