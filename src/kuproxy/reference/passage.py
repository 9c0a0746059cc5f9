"""What goes into the reference and what comes out of it, and a packet on its way in between."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from kuproxy.codes import FlowState, Outcome, Reason
from kuproxy.model.vip import Address, Pod, VipKey
from kuproxy.reference.flows import Flow
from kuproxy.reference.icmp import Say
from kuproxy.reference.packet import Packet
from kuproxy.reference.vips import VipState


@dataclass(frozen=True)
class RefPacket:
    """A frame as it is received."""

    data: bytes
    interface: int = 0
    partial_checksum: bool = False
    room: int = 65535  # bytes that an answer in its place may have
    gso: bool = False  # several segments under one header


class Result(NamedTuple):
    """What became of a packet."""

    outcome: Outcome
    reason: Reason
    data: bytes
    vip: VipKey | None = None
    pod: Address | None = None
    partial_checksum: bool = False


class LiveFlow(NamedTuple):
    """An established flow, as `show` would tell it."""

    protocol: int
    client: Address
    client_port: int
    address: Address  # what the client addresses
    port: int
    vip: VipKey
    pod: Address
    pod_port: int
    expires: int
    source: Address  # what the pod sees
    source_port: int
    state: FlowState


@dataclass(eq=False)
class Passage:
    """A packet on its way through the graph."""

    packet: Packet
    vip: VipState | None = None
    pod: Pod | None = None
    pod_port: int = 0
    by_node_port: bool = False
    flow: Flow | None = None
    say: Say | None = None  # for kp-icmp, with a value that goes into the message
    value: int = 0
    result: Result | None = None
