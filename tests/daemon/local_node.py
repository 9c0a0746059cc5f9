"""A node without a network, for tests and benchmarks of the control side."""

from __future__ import annotations

from kuproxy.engine.local import LocalEngine
from kuproxy.model.config import InterfaceMark
from kuproxy.model.vip import Prefix
from kuproxy.plane import Plane


class LocalNode:
    """A Forwarder without a network: steering is remembered, the engine is real."""

    def __init__(self) -> None:
        self.engine = LocalEngine()
        self.marks: tuple[InterfaceMark, ...] = ()
        self.node_port_networks: frozenset[Prefix] | None = None
        self.now = 1000

    def start(self, plane: Plane) -> None: ...

    def steer(self, plane: Plane, marks: tuple[InterfaceMark, ...]) -> None:
        self.marks = marks

    def serve_node_ports(self, plane: Plane, networks: frozenset[Prefix] | None) -> None:
        self.node_port_networks = networks

    def resize(self, log2_buckets: int) -> None:
        self.engine.resize(log2_buckets, self.now)

    def rehash(self, flow_hash: bytes | None) -> None:
        self.engine.rehash(flow_hash, self.now)

    def flush(self) -> int:
        return self.engine.flush()

    def trace(self, packets: int) -> None:
        self.engine.trace(packets)

    def check(self) -> None: ...

    def missing(self) -> list[int]:
        return []

    def take_over(self) -> list[str]:
        return []

    def processes(self) -> list[tuple[str, int]]:
        return []

    def leave(self) -> None: ...

    def stop(self) -> None: ...
