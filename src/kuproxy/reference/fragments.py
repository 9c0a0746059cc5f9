"""Fragments: the ports that first ones carried, and the later ones that came before their first."""

from __future__ import annotations

from dataclasses import dataclass

from kuproxy.codes import Family
from kuproxy.model.vip import Address
from kuproxy.reference.flows import is_live
from kuproxy.reference.packet import Packet

FRAGMENT_TICKS = 50  # 5 s: for known ports and for held fragments
HOLD_SLOTS = 64
HOLD_BYTES = 9206  # a jumbo frame; longer fragments are not held

# Source, destination, identification, and for IPv4 the protocol. In IPv6 the fragments of one datagram may name
# different next headers, so that these cannot tell it apart.
Datagram = tuple[Address, Address, int, int | None]


def datagram_of(packet: Packet) -> Datagram:
    protocol = packet.data[packet.l3 + 9] if packet.family == Family.IPV4 else None
    return packet.source, packet.destination, packet.identification, protocol


@dataclass(frozen=True)
class FirstFragment:
    """What the first fragment of a datagram tells about the later ones."""

    protocol: int
    source_port: int
    destination_port: int
    expires: int

    def teach(self, later: Packet) -> None:
        later.protocol = self.protocol
        later.source_port = self.source_port
        later.destination_port = self.destination_port


@dataclass(frozen=True)
class Held:
    """A later fragment that waits."""

    packet: Packet
    expires: int


class Fragments:
    """Both tables. The first is unbounded here; the hold has HOLD_SLOTS places."""

    def __init__(self) -> None:
        self._first: dict[Datagram, FirstFragment] = {}
        self._held: list[Held] = []
        self._leaving = 0  # released in this vector: their places are free with the next one

    def begin_vector(self) -> None:
        self._leaving = 0

    def enter_first(self, packet: Packet, expires: int) -> FirstFragment:
        first = FirstFragment(packet.protocol, packet.source_port, packet.destination_port, expires)
        self._first[datagram_of(packet)] = first
        return first

    def first_of(self, later: Packet, now: int) -> FirstFragment | None:
        first = self._first.get(datagram_of(later))
        return first if first is not None and is_live(first.expires, now) else None

    def hold_is_full(self) -> bool:
        return len(self._held) + self._leaving == HOLD_SLOTS

    def places_taken(self) -> int:
        return len(self._held) + self._leaving

    def take_place(self) -> None:
        """For a fragment of our own making, until the next vector."""
        self._leaving += 1

    def hold(self, packet: Packet, expires: int) -> None:
        self._held.append(Held(packet, expires))

    def take_held_for(self, first: Packet) -> list[Packet]:
        """In the order in which they came. Those that waited too long, but were not swept yet, are among them."""
        mine = [held for held in self._held if datagram_of(held.packet) == datagram_of(first)]
        self._held = [held for held in self._held if held not in mine]
        self._leaving += len(mine)
        return [held.packet for held in mine]

    def take_expired(self, now: int) -> list[Packet]:
        """Those that waited too long; ports that were remembered for as long are forgotten."""
        self._first = {key: first for key, first in self._first.items() if is_live(first.expires, now)}
        expired = [held for held in self._held if not is_live(held.expires, now)]
        self._held = [held for held in self._held if is_live(held.expires, now)]
        return [held.packet for held in expired]
