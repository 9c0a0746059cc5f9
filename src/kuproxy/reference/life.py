"""What a flow's packets tell about its life: section "Flow state" of docs/forwarding.md."""

from __future__ import annotations

from dataclasses import dataclass, field

from kuproxy.codes import Family, FlowFlag, FlowState, Protocol
from kuproxy.reference.packet import TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN, Packet

SPOKEN = FlowFlag.CLIENT | FlowFlag.POD
FINISHED = FlowFlag.CLIENT_FIN | FlowFlag.POD_FIN


def tcp_flags(packet: Packet) -> int | None:
    """None for other protocols, and for later fragments, which do not hold them."""
    if packet.protocol != Protocol.TCP or packet.is_later_fragment:
        return None
    return packet.data[packet.l4 + 13]


def begins(flags: int | None) -> bool:
    """A request for a new connection."""
    return flags is not None and flags & (TCP_SYN | TCP_ACK | TCP_RST | TCP_FIN) == TCP_SYN


def goes_on(flags: int | None) -> bool:
    """A segment in the midst of a connection."""
    return flags is not None and flags & (TCP_SYN | TCP_RST | TCP_ACK) == TCP_ACK


def refuses(flags: int | None) -> bool:
    """What answers such a segment where nobody knows the connection (RFC 9293 section 3.10.7.1)."""
    return flags is not None and flags & (TCP_RST | TCP_ACK) == TCP_RST


def state_of(protocol: int, family: Family) -> FlowState:
    """Of a flow that begins."""
    if protocol == (Protocol.ICMP if family == Family.IPV4 else Protocol.ICMP6):
        return FlowState.ICMP
    states = {
        Protocol.TCP: FlowState.TCP_HALF_OPEN,
        Protocol.UDP: FlowState.UDP,
        Protocol.SCTP: FlowState.SCTP,
    }
    return states.get(Protocol(protocol), FlowState.OTHER) if protocol in states else FlowState.OTHER


@dataclass
class Life:
    """State of a flow, and what the two sides of a TCP connection have said."""

    state: FlowState = FlowState.OTHER
    said: FlowFlag = field(default=FlowFlag(0))

    @property
    def is_half_open(self) -> bool:
        return self.state == FlowState.TCP_HALF_OPEN

    def begin(self, flags: int | None, *, direct: bool = False) -> None:
        """The first packet, of the client. With direct return the pod counts as having said all."""
        if direct:
            self.said |= FlowFlag.POD | FlowFlag.POD_FIN
        if flags is None:
            return
        self._listen(flags, from_client=True)
        if flags & TCP_RST or self.said & FINISHED == FINISHED:
            self.state = FlowState.TCP_CLOSING

    def turn(self, flags: int, *, from_client: bool) -> None:
        """Any later segment."""
        self._listen(flags, from_client=from_client)
        if flags & TCP_RST or self.said & FINISHED == FINISHED:
            self.state = FlowState.TCP_CLOSING
        elif self.said & SPOKEN == SPOKEN:
            self.state = FlowState.TCP_ESTABLISHED

    def _listen(self, flags: int, *, from_client: bool) -> None:
        if flags & TCP_RST:
            self.said &= ~SPOKEN
        elif from_client:
            if flags & TCP_ACK and not flags & TCP_SYN:
                self.said |= FlowFlag.CLIENT
            if flags & TCP_FIN:
                self.said |= FlowFlag.CLIENT_FIN
        else:
            self.said |= FlowFlag.POD
            if flags & TCP_FIN:
                self.said |= FlowFlag.POD_FIN
