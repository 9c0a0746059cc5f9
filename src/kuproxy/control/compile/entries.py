"""The match tables' entries: how a packet's addresses, protocol and ports lead to a VIP, a pod, the node."""

from collections.abc import Iterable, Iterator

import numpy as np

from kuproxy.codes import PROTOCOLS_WITH_PORTS, Family, Protocol
from kuproxy.control.compile.records import VipRecord
from kuproxy.control.compile.settings import SettingsWords
from kuproxy.control.compile.words import HOST, address_words, key_word, prefix_length
from kuproxy.dataplane.layout import (
    CLASS_ANY,
    CLASS_PORT,
    CLASS_PROTOCOL,
    KIND_NODE_ADDRESS,
    KIND_NODEPORT,
    KIND_VIP,
    PREFIX_LENGTHS,
    T_MATCH,
    T_N_NODEPORTS,
    T_PREFIXES,
    T_VIP_MATCH,
    Tables,
)
from kuproxy.dataplane.writer import MatchWriter, match_arena
from kuproxy.model.vip import Address, Vip, VipKey


class MatchEntries(SettingsWords):
    """Enters and takes out; what several things need is counted."""

    def __init__(self, tables: Tables, *, decrement_ttl: bool, any_node_address: bool):
        super().__init__(tables, decrement_ttl=decrement_ttl, any_node_address=any_node_address)
        arena = match_arena(tables)
        self._vip_match = MatchWriter(tables, T_VIP_MATCH, arena, self._retire)
        self._match = MatchWriter(tables, T_MATCH, arena, self._retire)
        # Address entries that several things need.
        self._references: dict[tuple[int, int, np.uint64], int] = {}
        self._lengths: dict[tuple[int, int, int], int] = {}  # VIP entries by family, prefix length, class
        self._node_addresses: set[Address] = set()

    def set_node_addresses(self, addresses: Iterable[Address]) -> int:
        """The addresses at which node ports answer."""
        wanted = set(addresses)
        for address in wanted - self._node_addresses:
            self._reference(KIND_NODE_ADDRESS, address)
        for address in self._node_addresses - wanted:
            self._dereference(KIND_NODE_ADDRESS, address)
        self._node_addresses = wanted
        return self._publish()

    @staticmethod
    def _protocols(key: VipKey) -> tuple[Protocol, ...]:
        """The protocols under which a key is entered."""
        if key.port and key.protocol == Protocol.ANY:
            return PROTOCOLS_WITH_PORTS
        return (key.protocol,)

    def _enter_key(self, record: VipRecord) -> None:
        key = record.vip.key
        hi, lo = address_words(key.prefix.network_address)
        for protocol in self._protocols(key):
            # A VIP of this very protocol goes before one of any protocol at the same port.
            if protocol != key.protocol and VipKey(key.prefix, protocol, key.port) in self._records:
                continue
            word = key_word(KIND_VIP, key.family, prefix_length(key), protocol, key.port)
            self._vip_match.put(hi, lo, word, record.index)
        self._count_length(key, 1)

    def _leave_key(self, record: VipRecord) -> None:
        key = record.vip.key
        hi, lo = address_words(key.prefix.network_address)
        general = None
        if key.port and key.protocol != Protocol.ANY:
            general = self._records.get(VipKey(key.prefix, Protocol.ANY, key.port))
        for protocol in self._protocols(key):
            if protocol != key.protocol and VipKey(key.prefix, protocol, key.port) in self._records:
                continue
            word = key_word(KIND_VIP, key.family, prefix_length(key), protocol, key.port)
            if general is not None and protocol in PROTOCOLS_WITH_PORTS:
                self._vip_match.put(hi, lo, word, general.index)
            else:
                self._vip_match.delete(hi, lo, word)
        self._count_length(key, -1)

    @staticmethod
    def _length_place(key: VipKey) -> tuple[int, int, int]:
        """Family (0 or 1), prefix length, and the kind of key."""
        kind = CLASS_PORT if key.port else CLASS_PROTOCOL if key.protocol != Protocol.ANY else CLASS_ANY
        return 0 if key.family == Family.IPV4 else 1, prefix_length(key), kind

    def _count_length(self, key: VipKey, change: int) -> None:
        """Keep the sets of prefix lengths and of their kinds of keys, which spare readers vain probes."""
        side, plen, kind = self._length_place(key)
        self._lengths[side, plen, kind] = self._lengths.get((side, plen, kind), 0) + change
        present = [k for k in (CLASS_PORT, CLASS_PROTOCOL, CLASS_ANY) if self._lengths.get((side, plen, k))]
        self.tables.classes[side * PREFIX_LENGTHS + plen] = sum(present)
        word = T_PREFIXES + 3 * side + plen // 64
        bit = 1 << plen % 64
        bits = int(self.tables.header[word])
        self.tables.header[word] = bits | bit if present else bits & ~bit

    def _enter_node_port(self, record: VipRecord, port: int) -> None:
        for word in self._node_port_words(record.vip, port):
            self._match.put(np.uint64(0), np.uint64(0), word, record.index)
            self.tables.header[T_N_NODEPORTS] += np.uint64(1)
        record.node_port = port

    def _leave_node_port(self, record: VipRecord) -> None:
        for word in self._node_port_words(record.vip, record.node_port):
            self._match.delete(np.uint64(0), np.uint64(0), word)
            self.tables.header[T_N_NODEPORTS] -= np.uint64(1)
        record.node_port = 0

    @staticmethod
    def _node_port_words(vip: Vip, port: int) -> Iterator[np.uint64]:
        if port:
            protocols = PROTOCOLS_WITH_PORTS if vip.key.protocol == Protocol.ANY else (vip.key.protocol,)
            for protocol in protocols:
                yield key_word(KIND_NODEPORT, vip.key.family, HOST, protocol, port)

    def _reference(self, kind: int, address: Address, plen: int = HOST) -> None:
        hi, lo = address_words(address)
        word = key_word(kind, address.version, plen, 0, 0)
        place = (int(hi), int(lo), word)
        count = self._references.get(place, 0)
        if count == 0:
            self._match.put(hi, lo, word, 1)
        self._references[place] = count + 1

    def _dereference(self, kind: int, address: Address, plen: int = HOST) -> None:
        hi, lo = address_words(address)
        word = key_word(kind, address.version, plen, 0, 0)
        place = (int(hi), int(lo), word)
        self._references[place] -= 1
        if self._references[place] == 0:
            del self._references[place]
            self._match.delete(hi, lo, word)
