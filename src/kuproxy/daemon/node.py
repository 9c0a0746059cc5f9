"""The part of this node that forwards: steering and workers, started, followed and ended together.

`Forwarder` is what the controller needs of it, so that tests can run a controller over an engine in their own process.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from kuproxy.codes import InterfaceFlag
from kuproxy.daemon.driver import DEFAULT_DRIVER, DriverChoice
from kuproxy.daemon.targets import steering_targets
from kuproxy.engine.contract import Engine
from kuproxy.engine.live import Attachment, LiveEngine
from kuproxy.engine.wiring import AF_PACKET, DriverKind, Wiring
from kuproxy.errors import DriverError
from kuproxy.model.config import InterfaceMark
from kuproxy.plane import Plane
from kuproxy.steering.links import KU0_MAC, KU1, KU1_MAC
from kuproxy.steering.steering import Steering
from kuproxy.steering.xdp import Where

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

    def __init__(
        self, log2_buckets: int, interfaces: Sequence[str] = (), driver: DriverChoice = DEFAULT_DRIVER
    ) -> None:
        self.engine = LiveEngine(log2_buckets)
        self._kind = driver.resolved()
        self.steering = Steering(
            workers=len(self.engine.workers),
            interfaces=tuple(interfaces) or None,
            xdp=Where(driver.mode) if self._kind is DriverKind.AF_XDP else None,
        )

    @property
    def driver(self) -> str:
        """What carries the packets, in words; once started."""
        gate = self.steering.gate
        return str(self._kind) if gate is None else f"{self._kind}, {gate.mode} mode"

    def start(self, plane: Plane) -> None:
        plane.compiler.set_interface(STEERED, int(InterfaceFlag.NAT4_IN | InterfaceFlag.NAT6_IN))
        self.steering.start()
        here = Attachment(
            KU1, _mac(KU0_MAC), _mac(KU1_MAC), namespace_fd=self.steering.namespace.fd, driver=self._wiring()
        )
        self.engine.start([here] * len(self.engine.workers))
        plane.driver = self.driver

    def _wiring(self) -> Wiring:
        gate = self.steering.gate
        return AF_PACKET if gate is None else Wiring(DriverKind.AF_XDP, gate.mode, gate.map_fd)

    def steer(self, plane: Plane, marks: tuple[InterfaceMark, ...]) -> None:
        self.steering.set_targets(steering_targets(plane.compiler, marks, plane.settings))
        self._follow_addresses(plane)

    def follow(self, plane: Plane) -> list[str]:
        """Take in what has happened on the node; call it when `steering.fileno()` is readable."""
        lines = list(self.steering.poll_events())
        self._follow_addresses(plane)
        return lines

    def _follow_addresses(self, plane: Plane) -> None:
        plane.compiler.set_node_addresses(self.steering.node_addresses)
        plane.compiler.set_own_addresses(self.steering.own_addresses)

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
