"""The part of this node that forwards: steering and workers, started, followed and ended together.

`Forwarder` is what the controller needs of it, so that tests can run a controller over an engine in their own process.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from kuproxy.codes import InterfaceFlag
from kuproxy.daemon.targets import steering_targets
from kuproxy.engine.contract import Engine
from kuproxy.engine.live import Attachment, LiveEngine
from kuproxy.errors import DriverError
from kuproxy.model.config import InterfaceMark
from kuproxy.model.vip import Prefix
from kuproxy.plane import Plane
from kuproxy.steering.links import KU0_MAC, KU1, KU1_MAC
from kuproxy.steering.steering import Steering

__all__ = ["Forwarder", "LiveNode"]

STEERED = 0  # interface index of everything that steering brings up: it has chosen already


class Forwarder(Protocol):
    """What carries out what the tables say."""

    @property
    def engine(self) -> Engine: ...

    def start(self, plane: Plane) -> None:
        """Begin to forward.  Raises KuError."""

    def steer(self, plane: Plane, marks: tuple[InterfaceMark, ...]) -> None:
        """Bring up the traffic that the tables have something to say about."""

    def serve_node_ports(self, plane: Plane, networks: frozenset[Prefix] | None) -> None:
        """Serve node ports at the node's addresses in these networks only; None: at all of them."""

    def resize(self, log2_buckets: int) -> None:
        """Change the flow tables' size.  Raises TableFullError, changing nothing."""

    def flush(self) -> int:
        """Forget all flows; returns how many."""

    def trace(self, packets: int) -> None:
        """Trace that many packets more at each worker."""

    def check(self) -> None:
        """Raises DriverError when something that must run has ended."""

    def stop(self) -> None:
        """Leave the node as it was."""


def _mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


class LiveNode:
    """Steering and worker processes in this network namespace."""

    def __init__(self, log2_buckets: int, interfaces: Sequence[str] = ()) -> None:
        self.engine = LiveEngine(log2_buckets)
        self.steering = Steering(workers=len(self.engine.workers), interfaces=tuple(interfaces) or None)
        self._marks: tuple[InterfaceMark, ...] = ()
        self._node_port_networks: frozenset[Prefix] | None = None

    def start(self, plane: Plane) -> None:
        plane.compiler.set_interface(STEERED, int(InterfaceFlag.NAT4_IN | InterfaceFlag.NAT6_IN))
        self.steering.start()
        here = Attachment(KU1, _mac(KU0_MAC), _mac(KU1_MAC), namespace_fd=self.steering.namespace.fd)
        self.engine.start([here] * len(self.engine.workers))

    def steer(self, plane: Plane, marks: tuple[InterfaceMark, ...]) -> None:
        targets = steering_targets(plane.compiler, marks, plane.settings)
        self.steering.set_targets(replace(targets, node_networks=self._node_port_networks))
        self._marks = marks
        self._follow_addresses(plane)

    def serve_node_ports(self, plane: Plane, networks: frozenset[Prefix] | None) -> None:
        if networks != self._node_port_networks:
            before, self._node_port_networks = self._node_port_networks, networks
            try:
                self.steer(plane, self._marks)
            except BaseException:
                self._node_port_networks = before
                raise

    def follow(self, plane: Plane) -> list[str]:
        """Take in what has happened on the node; call it when `steering.fileno()` is readable."""
        lines = list(self.steering.poll_events())
        self._follow_addresses(plane)
        return lines

    def _follow_addresses(self, plane: Plane) -> None:
        steering = self.steering
        plane.follow_node(steering.addresses, steering.node_addresses, steering.own_addresses)

    def resize(self, log2_buckets: int) -> None:
        self.engine.resize(log2_buckets)

    def flush(self) -> int:
        return self.engine.flush()

    def trace(self, packets: int) -> None:
        self.engine.trace(packets)

    def check(self) -> None:
        for worker in self.engine.workers:
            status = worker.ended()
            if status is not None:
                raise DriverError(f"worker {worker.number} ended with status {status}")

    def stop(self) -> None:
        self.steering.close()
        self.engine.stop()
