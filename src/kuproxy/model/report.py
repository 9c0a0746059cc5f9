"""What `show` tells: plain numbers, already summed over the workers, without a trace of arrays.

Whoever owns the workers fills these records in; `vppcli.show` turns them into text or JSON.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from kuproxy.codes import FlowState, Node, Reason, VipCounter
from kuproxy.model.config import InterfaceMark, Settings
from kuproxy.model.vip import DEFAULT_WEIGHT, Address, Vip

__all__ = ["NodeCount", "PodReport", "Report", "VipReport", "WorkerReport"]


@dataclass(frozen=True, slots=True)
class PodReport:
    address: Address
    port: int  # 0: the VIP's target port
    slots: int  # of the VIP's new-flow table
    flows: int  # that the workers remember
    draining: bool = False  # removed from the VIP, serving its remaining flows
    weight: int = DEFAULT_WEIGHT


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
class WorkerReport:
    index: int
    flows: int  # live entries of its established-flow table
    capacity: int  # entries, not buckets
    states: Mapping[FlowState, int] = field(default_factory=dict)  # flows by state; absent: 0


@dataclass(frozen=True, slots=True)
class Report:
    settings: Settings = Settings()
    vips: tuple[VipReport, ...] = ()
    nodes: tuple[NodeCount, ...] = ()
    workers: tuple[WorkerReport, ...] = ()
    interfaces: tuple[InterfaceMark, ...] = ()
