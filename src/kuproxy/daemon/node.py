"""The part of this node that forwards: steering and workers, started, followed, handed over and ended together.

`Forwarder` is what the controller needs of it, so that tests can run a controller over an engine in their own process.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Sequence
from typing import Protocol

from kuproxy.codes import InterfaceFlag
from kuproxy.daemon.targets import TargetBook, steering_marks
from kuproxy.drivers.af_packet import open_for_worker
from kuproxy.engine import handover
from kuproxy.engine.contract import Engine
from kuproxy.engine.live import Attachment, LiveEngine
from kuproxy.errors import HandoverError
from kuproxy.keeper.vault import Vault
from kuproxy.model.config import InterfaceMark
from kuproxy.model.vip import Prefix
from kuproxy.plane import Plane
from kuproxy.steering.links import KU0, KU0_MAC, KU1, KU1_MAC, is_left
from kuproxy.steering.steering import Steering
from kuproxy.steering.targets import Targets

__all__ = ["Forwarder", "LiveNode"]

_FANOUT = 1  # group number; ours alone in the private namespace
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

    def take_over(self) -> list[str]:
        """All sources have spoken: from now on what they ask for is steered, and nothing else. Lines for the log."""

    def processes(self) -> list[tuple[str, int]]:
        """(role, process id) of all that take part."""

    def leave(self) -> None:
        """Let go, for a successor; forwarding goes on."""

    def stop(self) -> None:
        """Leave the node as it was."""


def _mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


class LiveNode:
    """Steering and worker processes in this network namespace."""

    def __init__(
        self,
        log2_buckets: int,
        interfaces: Sequence[str] = (),
        workers: int = 1,
        vault: Vault | None = None,
        filtered: bool = True,
    ) -> None:
        """With what a predecessor has left in the vault; `notes` say what became of it. Raises HandoverError.

        `filtered`: workers run under seccomp.py's filter.
        """
        self._filtered = filtered
        self._vault = vault if vault is not None else Vault()
        self.notes: list[str] = []
        self._marks: tuple[InterfaceMark, ...] = ()
        self._node_port_networks: frozenset[Prefix] | None = None
        workers = self._inherit(workers)
        self.engine = LiveEngine(log2_buckets, workers, self._vault)
        handover.leave_description(self._vault, workers)
        self.steering = Steering(workers, tuple(interfaces) or None, self._vault)
        self._targets = TargetBook()
        self._general: Targets | None = None  # what does not depend on single VIPs

    def _inherit(self, workers: int) -> int:
        """Look at what there is, and make it fit; returns the number of workers."""
        left = handover.predecessor(self._vault)
        if left is None:
            self._vault.drop_all()
            return workers
        if not is_left(self._vault):
            raise HandoverError(f"the interface {KU0} is gone, and with it what the workers were connected to")
        if left["workers"] != workers:
            self.notes.append(f"{left['workers']} workers go on; {workers} need a restart of the keeper")
        if not handover.same_layout(left):
            lost = handover.losses(left, handover.describe(left["workers"]))
            self.notes.append(
                f"the memory's layout has changed: copied, but for {', '.join(lost) or 'nothing'}"
            )
            handover.migrate(left, self._vault)
        return int(left["workers"])

    def start(self, plane: Plane) -> None:
        plane.compiler.set_interface(STEERED, int(InterfaceFlag.NAT4_IN | InterfaceFlag.NAT6_IN))
        self.steering.start()
        count = len(self.engine.workers)
        here = [
            Attachment(
                KU1, _mac(KU0_MAC), _mac(KU1_MAC), self._socket_opener(count > 1), filtered=self._filtered
            )
            for _ in range(count)
        ]
        adopted = self.engine.start(here)
        if adopted:
            self.notes.append(f"{adopted} of {count} workers were running, and go on")

    def _socket_opener(self, shared: bool) -> Callable[[], tuple[socket.socket, socket.socket]]:
        """Opens the sockets of the next worker: PACKET_FANOUT_QM counts them in the order of their opening."""
        fanout = _FANOUT if shared else None
        return lambda: self.steering.namespace.run(lambda: open_for_worker(KU1, fanout))

    def take_over(self) -> list[str]:
        return self.steering.take_over()

    def steer(self, plane: Plane, marks: tuple[InterfaceMark, ...]) -> None:
        before, now, tunnels, done = self._targets.change(plane.compiler, plane.settings)
        targets = Targets(
            marks=steering_marks(marks), node_networks=self._node_port_networks, tunnels=tunnels
        )
        self.steering.change(before, now, targets)
        done()
        if targets != self._general:
            self._general, self._marks = targets, marks
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
        self.engine.check()

    def processes(self) -> list[tuple[str, int]]:
        above = [("keeper", os.getppid())] if self._vault.connected else []
        return [*above, ("control", os.getpid()), *self.engine.processes()]

    def leave(self) -> None:
        self.steering.leave()
        self.engine.leave()

    def stop(self) -> None:
        self.steering.close()
        self.engine.stop()
