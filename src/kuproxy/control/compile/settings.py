"""What the tables hold beside VIPs and pods: the words of the header, marks of interfaces, sources by number."""

from collections.abc import Iterable, Iterator, Mapping
from ipaddress import IPv4Network, IPv6Network

import numpy as np

from kuproxy.codes import FlowState
from kuproxy.control.compile.ranges import RangeBlocks
from kuproxy.control.compile.records import Block
from kuproxy.control.compile.words import address_words, words_address
from kuproxy.dataplane.layout import (
    MAX_SOURCES,
    T_ANY_NODE_ADDRESS,
    T_DECREMENT_TTL,
    T_FLOW_TIMEOUT,
    T_MASQUERADE4,
    T_MASQUERADE6,
    T_NAT46_HI,
    T_NAT46_LO,
    T_NAT64_BASE,
    T_NAT64_COUNT,
    T_NAT64_PORTS,
    T_NODE_RANGES4,
    T_NODE_RANGES6,
    T_OWN4,
    T_OWN6_HI,
    T_OWN6_LO,
    T_POD_RANGES4,
    T_POD_RANGES6,
    T_REJECT_RATE,
    T_TRANSLATION_MTU,
    T_TUNNEL_SOURCE,
    TICKS_PER_SECOND,
    Tables,
)
from kuproxy.model.config import NAT46_PREFIX, NAT64_POOL, NAT64_PORTS
from kuproxy.model.vip import Address, Prefix, host_prefix

DEFAULT_REJECT_RATE = 1000  # ICMP answers per second and worker, as Linux' icmp_msgs_per_sec


class SettingsWords(RangeBlocks):
    """Each setting takes effect with its publication; flows that began before keep what they began with."""

    def __init__(self, tables: Tables, *, decrement_ttl: bool, any_node_address: bool):
        super().__init__(tables)
        self._sources: list[Address] = []  # of IPv6, in the order of their indices
        self._next_source = 0
        self._origins: dict[int, tuple[tuple[Prefix, ...], Block | None]] = {}  # by word of the header
        tables.header[T_DECREMENT_TTL] = int(decrement_ttl)
        tables.header[T_ANY_NODE_ADDRESS] = int(any_node_address)
        tables.header[T_REJECT_RATE] = DEFAULT_REJECT_RATE
        if self.inherited:
            self._sources = list(_sources(tables))
            self._next_source = len(self._sources)
        else:
            self.set_translation(NAT46_PREFIX, NAT64_POOL, NAT64_PORTS, 0)

    def set_timeout(self, seconds: float) -> int:
        """One flow timeout for all states, from the next packet of each flow on."""
        return self.set_timeouts(dict.fromkeys(FlowState, seconds))

    def set_timeouts(self, seconds: Mapping[FlowState, float]) -> int:
        """The flow timeout of each state, from the next packet of each flow on."""
        for state, value in seconds.items():
            self.tables.header[T_FLOW_TIMEOUT + state] = max(1, round(value * TICKS_PER_SECOND))
        return self._publish()

    def set_tunnel_sources(self, ipv4: Address | None, ipv6: Address | None) -> int:
        """Our address in the outer headers of tunnels; None: such tunnels carry nothing."""
        zeros = (np.uint64(0), np.uint64(0))
        _, lo4 = address_words(ipv4) if ipv4 is not None else zeros
        hi6, lo6 = address_words(ipv6) if ipv6 is not None else zeros
        self.tables.header[T_TUNNEL_SOURCE : T_TUNNEL_SOURCE + 3] = (lo4, hi6, lo6)
        return self._publish()

    def set_masquerade(self, addresses: Iterable[Address]) -> int:
        """The source of masqueraded packets: at most one address of each family, none where there is no family."""
        word4 = word6 = 0
        for address in addresses:
            if address.version == 4:
                word4 = int(address_words(address)[1]) >> 32
            else:
                word6 = self._source_index(address)
        self.tables.header[T_MASQUERADE4] = word4
        self.tables.header[T_MASQUERADE6] = word6
        return self._publish()

    def _source_index(self, address: Address) -> int:
        """An address keeps its index: flows name it. When all are taken the oldest one is overwritten."""
        if address not in self._sources:
            place = self._next_source % (MAX_SOURCES - 1)
            self._next_source += 1
            self._sources[place : place + 1] = [address]
            self.tables.sources[place + 1] = address_words(address)
        return self._sources.index(address) + 1

    def set_translation(
        self, prefix: IPv6Network, pool: IPv4Network | None, ports: tuple[int, int], mtu: int
    ) -> int:
        """What clients are called at pods of the other family, and the longest packet that translation may make.

        Flows that began before keep their pool address; their replies are known as long as it stays in the pool.
        """
        header = self.tables.header
        header[T_NAT46_HI], header[T_NAT46_LO] = address_words(prefix.network_address)
        low, high = ports
        header[T_NAT64_COUNT] = 0  # no reader may see a mixture
        header[T_NAT64_PORTS] = low << 16 | high - low + 1
        header[T_TRANSLATION_MTU] = mtu
        if pool is not None:
            header[T_NAT64_BASE] = int(pool.network_address)
            header[T_NAT64_COUNT] = pool.num_addresses
        return self._publish()

    def set_own_addresses(self, addresses: Iterable[Address]) -> int:
        """The sources of ICMP errors of our own: the first address of each family; without one, what was addressed."""
        own = {address.version: address_words(address) for address in reversed(list(addresses))}
        self.tables.header[T_OWN4] = own.get(4, (0, 0))[1]
        self.tables.header[T_OWN6_HI], self.tables.header[T_OWN6_LO] = own.get(6, (0, 0))
        return self._publish()

    def set_pod_ranges(self, prefixes: Iterable[Prefix]) -> int:
        """Whose packets count as a pod's (Origin.POD), wherever VIPs treat clients unlike. No flow that runs moves."""
        return self._set_origin(T_POD_RANGES4, T_POD_RANGES6, prefixes)

    def set_node_ranges(self, addresses: Iterable[Address]) -> int:
        """The node's own addresses, all of them: a client with one of them is the node itself (Origin.NODE)."""
        return self._set_origin(T_NODE_RANGES4, T_NODE_RANGES6, map(host_prefix, addresses))

    def _set_origin(self, word4: int, word6: int, prefixes: Iterable[Prefix]) -> int:
        every = set(prefixes)
        for version, word in ((4, word4), (6, word6)):
            wanted = tuple(sorted(each for each in every if each.version == version))
            known, old = self._origins.get(word, ((), None))
            if wanted != known:
                block = self._write_block(wanted)
                self._origins[word] = wanted, block
                self.tables.header[word] = block.offset if block else 0
                self._give_up_block(old)
        return self._publish()

    def set_interface(self, index: int, flags: int) -> int:
        """Mark an interface (InterfaceFlag)."""
        self.tables.interfaces[index] = flags
        return self._publish()


def _sources(tables: Tables) -> Iterator[Address]:
    """The sources that have a number, in the order of their numbers."""
    for row in tables.sources[1:]:
        if row["hi"] == 0 and row["lo"] == 0:
            return
        yield words_address(6, int(row["hi"]), int(row["lo"]))
