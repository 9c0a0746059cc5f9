"""The flow cache's maps as user space has them: entering flows, forbidding them at once, reading what was counted.

Who may use a row again?  Nobody, until every program that could still look at it has ended: `erase` and then `fence`
come first.  The fence is an update of a map of maps, after which the kernel waits for running programs
(`maybe_wait_bpf_programs()`).

With a keeper the maps outlive this process, and with them every cached flow; a successor takes them over.
"""

from __future__ import annotations

import mmap
import struct
from typing import NamedTuple

import numpy as np

from ..errors import SteeringError
from ..keeper.vault import Vault
from .bpf import Map, MapKind
from .cache_layout import KEY, LAYOUT, LEASE_ROW, MAX_ENTRIES, ROW, SHORTCUT_ROW, VALUE, CountOf, Way
from .cache_program import ipv6_sum_probe
from .keys import KeyBit
from .links import KU0_MAC

__all__ = ["ENDS", "CacheMaps", "CacheStats", "forget_left", "has_ipv6_sums"]

# The four ends of a flow: whom the client is and whom it addressed, the pod and whom that sees. Addresses have 16
# bytes, IPv4 in the last four; ports are in network byte order.
ENDS = np.dtype(
    [
        ("client", "u1", 16),
        ("vip", "u1", 16),
        ("pod", "u1", 16),
        ("seen", "u1", 16),
        ("client_port", ">u2"),
        ("vip_port", ">u2"),
        ("pod_port", ">u2"),
        ("seen_port", ">u2"),
        ("protocol", "u1"),
        ("family", "u1"),  # 4 or 6
    ]
)

_WORDS = np.dtype([("words", "<u8", ROW.itemsize // 8)])
_NAME = "cache"  # in the vault: cache/LAYOUT/ENTRIES/MAP
_MAC = np.frombuffer(bytes.fromhex(KU0_MAC.replace(":", "")), np.uint8)


class CacheStats(NamedTuple):
    """Packets, over all CPUs; see CountOf."""

    hits: int
    closed: int
    lapsed: int
    failed: int
    short: int


def has_ipv6_sums() -> bool:
    """Whether this kernel can change the checksum of an IPv6 packet that a device has summed; see `ipv6_sum_probe`."""
    probe = ipv6_sum_probe().load()
    try:
        frame = bytes(12) + struct.pack(">H", 0x86DD) + bytes([0x60]) + bytes(5) + bytes([6]) + bytes(53)
        return probe.test_run(frame).verdict == 1
    finally:
        probe.close()


class CacheMaps:
    """Room for `entries` directions, that is half as many flows.

    `rows` is ROW[2 * (pairs + 1)], the kernel's own memory.  `adopted`: a predecessor has made all of it.
    """

    def __init__(self, entries: int, vault: Vault | None = None) -> None:
        """Raises SteeringError where the kernel cannot."""
        if not 2 <= entries <= MAX_ENTRIES:
            raise ValueError(f"a flow cache has 2 to {MAX_ENTRIES} entries, not {entries}")
        self.pairs = entries // 2
        self._vault = vault if vault is not None else Vault()
        self._all: dict[str, Map] = {}
        rows = 2 * (self.pairs + 1)
        names = {each: f"{_NAME}/{LAYOUT}/{self.pairs}/{each}" for each in ("flows", "rows", "cached")}
        left = set(self._vault.names(f"{_NAME}/"))
        self.adopted = left.issuperset(names.values())
        if not self.adopted:
            self._vault.drop(*left)
        try:
            self.flows = self._make(
                MapKind.HASH, "flows", KEY.itemsize, VALUE.itemsize, 2 * self.pairs, names, fixed=True
            )
            self._rows = self._make(MapKind.ARRAY, "rows", 4, ROW.itemsize, rows, names, mapped=True)
            self._counts = self._make(MapKind.PERCPU_ARRAY, "cached", 4, 8, len(CountOf), names)
            # What is in it does not matter: it exists to be written.
            self._outer = self._own(Map(MapKind.ARRAY_OF_MAPS, "ku_fence", 4, 4, 1, inner=self._counts))
            try:
                self._memory = mmap.mmap(self._rows.fd, rows * ROW.itemsize)
            except OSError as error:
                raise SteeringError(f"mapping BPF map 'ku_rows': {error.strerror}") from error
        except BaseException:
            self.close()
            raise
        self.rows: np.ndarray = np.frombuffer(self._memory, ROW)
        self._kept = tuple(names.values())
        self._vault.keep({names[each]: self._all[each].fd for each in names})

    def _make(
        self,
        kind: MapKind,
        name: str,
        key_size: int,
        value_size: int,
        capacity: int,
        names: dict[str, str],
        *,
        fixed: bool = False,
        mapped: bool = False,
    ) -> Map:
        title = f"ku_{name}"
        if self.adopted:
            fd = self._vault.take(names[name])
            made = Map.adopt(fd, kind, title, key_size, value_size, capacity)
        else:
            made = Map(kind, title, key_size, value_size, capacity, fixed=fixed, mapped=mapped)
        self._all[name] = made
        return made

    def _own(self, made: Map) -> Map:
        self._all[made.name] = made
        return made

    def by_name(self) -> dict[str, Map]:
        """Those that the program wants."""
        return {name: self._all[name] for name in ("flows", "rows", "cached")}

    # --- flows ----------------------------------------------------------------------------------------------

    def enter(
        self, pairs: np.ndarray, generations: np.ndarray, ends: np.ndarray, keys: np.ndarray | None = None
    ) -> None:
        """Write rows and entries of new flows, armed: packets with SYN, FIN or RST close them, none is rewritten yet.

        int64[n] pairs that are free, uint32[n] generations that they never had, ENDS[n], and their keys, where those
        are known already.  Raises SteeringError; then some of them may have been entered, and have to be forbidden
        and erased.
        """
        keys = self.keys(ends) if keys is None else keys
        four = ends["family"] == 4
        only_four = bool(four.all())
        for returning in (0, 1):
            index = _every_second(pairs, returning)
            # Where they follow one another they are written where they lie; they are free, and nobody reads them.
            rows = self.rows[index]
            rows.view(_WORDS)["words"] = 0
            rows["returning"], rows["protocol"] = returning, ends["protocol"]
            rows["family"] = np.where(four, 0, int(KeyBit.IPV6))
            rows["mac"] = _MAC
            new_source, new_destination = ("seen", "pod") if not returning else ("vip", "client")
            if only_four:
                rows["addresses"][:, :4] = ends[new_source][:, 12:]
                rows["addresses"][:, 4:8] = ends[new_destination][:, 12:]
            else:
                both = np.concatenate([ends[new_source], ends[new_destination]], axis=1)
                both[four, :8] = np.concatenate([both[four, 12:16], both[four, 28:]], axis=1)
                both[four, 8:] = 0
                rows["addresses"] = both
            rows["source_port"] = ends[f"{new_source}_port"]
            rows["destination_port"] = ends[f"{new_destination}_port"]
            if not isinstance(index, slice):
                self.rows[index] = rows
            self.rows["armed"][index] = generations
        values = np.zeros((len(pairs), 2), VALUE)
        values["row"] = np.stack([2 * pairs, 2 * pairs + 1], axis=1)
        values["generation"] = generations[:, np.newaxis]
        self.flows.write(keys.tobytes(), values.tobytes(), 2 * len(pairs))

    def allow(self, pairs: np.ndarray) -> None:
        """From now on the program rewrites these flows' packets."""
        for index in (2 * pairs, 2 * pairs + 1):
            self.rows["live"][index] = self.rows["armed"][index]

    def forbid(self, pairs: np.ndarray) -> None:
        """No packet is rewritten by these any more, but for those that a program has in hand: see `fence`."""
        for index in (2 * pairs, 2 * pairs + 1):
            self.rows["live"][index] = 0
            self.rows["armed"][index] = 0

    @staticmethod
    def keys(ends: np.ndarray) -> np.ndarray:
        """KEY[n, 2]: what the flows' packets look like when they come, to the VIP and from the pod."""
        keys = np.zeros((len(ends), 2), KEY)
        for returning, (source, destination) in enumerate((("client", "vip"), ("pod", "seen"))):
            key = keys[:, returning]
            key["source"], key["destination"] = ends[source], ends[destination]
            key["source_port"], key["destination_port"] = ends[f"{source}_port"], ends[f"{destination}_port"]
            key["protocol"] = ends["protocol"]
            key["family"] = np.where(ends["family"] == 4, 0, int(KeyBit.IPV6))
        return keys

    def keys_of(self, pairs: np.ndarray) -> np.ndarray:
        """KEY[n, 2] of flows that were entered, as their rows tell it."""
        there, back = self.rows[2 * pairs], self.rows[2 * pairs + 1]
        ends = np.zeros(len(pairs), ENDS)
        ends["protocol"] = there["protocol"]
        four = there["family"] == 0
        ends["family"] = np.where(four, 4, 6)
        for row, source, destination in ((there, "seen", "pod"), (back, "vip", "client")):
            for place, name in ((0, source), (1, destination)):
                wide = row["addresses"][:, 16 * place : 16 * place + 16].copy()
                wide[four] = 0
                wide[four, 12:] = row["addresses"][four, 4 * place : 4 * place + 4]
                ends[name] = wide
            ends[f"{source}_port"] = row["source_port"]
            ends[f"{destination}_port"] = row["destination_port"]
        return self.keys(ends)

    def erase(self, keys: np.ndarray) -> None:
        """Take entries out, KEY[...]; those that are not there do no harm."""
        self.flows.erase(keys.tobytes())

    def fence(self) -> None:
        """Return when every program that ran has ended: after that, what was erased and forbidden is out of use."""
        self._outer.update({struct.pack("=I", 0): struct.pack("=I", self._counts.fd)})

    def lease(self, until_ns: int) -> None:
        """Let the program rewrite until then (CLOCK_MONOTONIC); 0: not now."""
        self.rows["last_seen_ns"][LEASE_ROW] = until_ns

    # --- ways out of the node -------------------------------------------------------------------------------

    def lease_shortcuts(self, until_ns: int) -> None:
        """Let packets take their rows' shortcuts until then (CLOCK_MONOTONIC); 0: not now."""
        self.rows["last_seen_ns"][SHORTCUT_ROW] = until_ns

    def destinations(self, rows: np.ndarray) -> tuple[list[bytes], np.ndarray]:
        """(addresses of 4 or 16 bytes, int64[n] indices of rows' own): where rewritten packets go."""
        own = np.zeros((len(rows), 17), np.uint8)
        six = self.rows["family"][rows] != 0
        addresses = self.rows["addresses"][rows]
        own[six, :16], own[six, 16] = addresses[six, 16:], 1
        own[~six, :4] = addresses[~six, 4:8]
        found, codes = np.unique(own.view("V17").reshape(-1), return_inverse=True)
        return [(data[:16] if data[16] else data[:4]) for data in (each.tobytes() for each in found)], codes

    def choose(self, rows: np.ndarray, chosen: np.ndarray) -> None:
        """Write rows' ways, CHOICE[n]; no program may be in the middle of one that had another: `route`, `fence`."""
        for name in ("ifindex", "mtu", "next_hop", "macs", "way"):
            self.rows[name][rows] = chosen[name]

    def differ(self, rows: np.ndarray, chosen: np.ndarray) -> np.ndarray:
        """bool[n]: do rows say something else than what was chosen for them, CHOICE[n]?"""
        there = self.rows[rows]
        different = np.zeros(len(rows), bool)
        for name in ("ifindex", "mtu", "way"):
            different |= there[name] != chosen[name]
        for name in ("next_hop", "macs"):
            different |= (there[name] != chosen[name]).any(axis=1)
        return different

    def route(self, rows: np.ndarray) -> None:
        """Let these have no shortcut."""
        self.rows["way"][rows] = int(Way.ROUTE)

    # --- what there is to say -------------------------------------------------------------------------------

    def stats(self) -> CacheStats:
        return CacheStats(*(self._count(index) for index in CountOf))

    def _count(self, index: CountOf) -> int:
        values = self._counts.lookup(struct.pack("=I", index)) or b""
        return sum(struct.unpack(f"={len(values) // 8}Q", values))

    # --- the end ----------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Give back what is this process's; a keeper goes on holding what it keeps. Idempotent."""
        for each in self._all.values():
            each.close()
        self._all.clear()

    def drop(self) -> None:
        """Let nothing be left."""
        self.close()
        self._vault.drop(*self._kept)


def _every_second(pairs: np.ndarray, returning: int) -> np.ndarray | slice:
    """Indices of pairs' rows of one direction; a slice where they follow one another, which costs a fraction."""
    if len(pairs) and (np.diff(pairs) == 1).all():
        return slice(2 * int(pairs[0]) + returning, 2 * int(pairs[-1]) + 2, 2)
    return 2 * pairs + returning


def forget_left(vault: Vault) -> None:
    """Have the keeper let go of a predecessor's maps, where there is no cache any more."""
    vault.drop(*vault.names(f"{_NAME}/"))
