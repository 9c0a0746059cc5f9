"""What `show` tells: plain numbers, already summed over the workers, without a trace of arrays.

Whoever owns the workers fills these records in; `vppcli.show` turns them into text or JSON.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from kuproxy.codes import FlowState, Node, Outcome, PodCounter, Reason, VipCounter
from kuproxy.model.config import InterfaceMark, Settings
from kuproxy.model.vip import DEFAULT_WEIGHT, Address, Pod, Vip, VipKey

__all__ = [
    "KERNEL", "WORKER", "CacheReport", "Carried", "FlowList", "FlowReport", "NodeCount", "PodReport", "ReplyReport",
    "Report",
    "TraceStep", "TracedPacket", "VipReport", "WorkerReport",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class PodReport:
    address: Address
    port: int  # 0: the VIP's target port
    slots: int  # of the VIP's new-flow table; where clients from outside have one of their own, of the other
    flows: int  # that the workers remember
    draining: bool = False  # removed from the VIP, serving its remaining flows
    counters: Mapping[PodCounter, int] = field(default_factory=dict)  # absent: 0
    weight: int = DEFAULT_WEIGHT
    outside_slots: int | None = None  # of the table for clients from outside; None: there is but one table


@dataclass(frozen=True, slots=True)
class VipReport:
    index: int
    vip: Vip
    removed: bool = False  # deleted, its flows not yet forgotten
    counters: Mapping[VipCounter, int] = field(default_factory=dict)  # absent: 0
    pods: tuple[PodReport, ...] = ()


@dataclass(frozen=True, slots=True)
class NodeCount:
    node: Node
    reason: Reason
    count: int


@dataclass(frozen=True, slots=True)
class TraceStep:
    """What one node left of a traced packet. Ports are 0 where there are none, `family` 0 before there is a header."""

    node: Node
    time_s: float  # since the first record
    outcome: Outcome  # NONE: it went on
    reason: Reason
    interface: int
    bytes: int  # of the frame
    family: int
    protocol: int
    source: Address | None
    source_port: int
    destination: Address | None
    destination_port: int
    hash: int
    fragment: bool
    vip_index: int  # 0: none so far
    vip: VipKey | None  # None also if it was deleted since
    pod: Address | None
    pod_port: int
    event: Reason  # how kp-balance came by the pod: EXISTING_SESSION, FIRST_PACKET, UNTRACKED, NONE
    clash_avoided: bool
    flow: int  # place in the established-flow table
    ring_slot: int
    ring_slots: int  # 0: the new-flow table was not asked


@dataclass(frozen=True, slots=True)
class TracedPacket:
    worker: int
    number: int
    steps: tuple[TraceStep, ...]


@dataclass(frozen=True, slots=True)
class WorkerReport:
    index: int
    flows: int  # live entries of its established-flow table
    capacity: int  # entries, not buckets
    states: Mapping[FlowState, int] = field(default_factory=dict)  # flows by state; absent: 0


WORKER, KERNEL = "worker", "kernel"  # tiers


@dataclass(frozen=True, slots=True)
class FlowReport:
    """One remembered flow; `source_port` is the client's as the pod sees it."""

    worker: int
    slot: int
    vip: VipKey | None  # None: deleted meanwhile
    protocol: int
    client: Address
    client_port: int
    destination: Address
    destination_port: int
    pod: Address
    pod_port: int
    source_port: int
    state: FlowState
    age_s: float
    expires_in_s: float
    # The pod that gets the flow if `pod`, which may not know the connection, refuses it; None: `pod` it is.
    otherwise: Pod | None = None
    tier: str = WORKER  # who rewrites its packets
    # Where they go then, to the pod and to the client: route, neighbour or peer (steering.cache_layout.Way).
    ways: tuple[str, str] = ("route", "route")


@dataclass(frozen=True, slots=True)
class FlowList:
    """A page of flows, and behind which worker and slot the next one begins; None: there is no more."""

    flows: tuple[FlowReport, ...] = ()
    next: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Carried:
    """What the kernel makes of a flow that it carries; `ways` as in FlowReport."""

    expires_in_s: float
    ways: tuple[str, str] = ("route", "route")


@dataclass(frozen=True, slots=True)
class CacheReport:
    """What the kernel's flow cache does. Counts of packets last as long as the cache, the others as long as control."""

    on: bool
    why: str = ""  # it is not
    flows: int = 0  # whose packets are rewritten there
    capacity: int = 0
    hits: int = 0  # packets rewritten
    came_up: int = 0  # packets of VIPs and pods that were not, and were brought to the workers
    closed: int = 0  # segments with SYN, FIN or RST of cached flows
    lapsed: int = 0  # packets of cached flows that came up because a trace was asked for, or control was gone too long
    failed: int = 0  # packets dropped because the kernel could not make room for a change
    entered: int = 0  # flows
    turned_away: int = 0  # because there was no place, counted at every turn
    given_back: Mapping[str, int] = field(default_factory=dict)  # flows, by reason
    short: int = 0  # of the packets rewritten: that took a shortcut
    # Directions of flows by their way (route, neighbour, peer), and of those that are routed by the reason; empty: no
    # shortcuts were asked for.
    ways: Mapping[str, int] = field(default_factory=dict)
    because: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ReplyReport:
    """Where replies of pods may come in, and how many packets came in elsewhere in a pod's name.

    `path`: `strict` and `any` as in Settings, `marked` where interfaces are.  The count lasts as long as control.
    """

    path: str
    refused: int = 0  # left to the node's own stack


@dataclass(frozen=True, slots=True)
class Report:
    settings: Settings = Settings()
    vips: tuple[VipReport, ...] = ()
    nodes: tuple[NodeCount, ...] = ()
    workers: tuple[WorkerReport, ...] = ()
    interfaces: tuple[InterfaceMark, ...] = ()
    trace: tuple[TracedPacket, ...] = ()
    flows: FlowList = FlowList()  # those that one `show flows` asks for
    driver: str = ""  # what carries live traffic; empty where there is none
    cache: CacheReport | None = None  # None: it was not asked for
    replies: ReplyReport | None = None  # None: no live traffic
