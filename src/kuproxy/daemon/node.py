"""The part of this node that forwards: steering and workers, started, followed, handed over and ended together.

`Forwarder` is what the controller needs of it, so that tests can run a controller over an engine in their own process.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Protocol

from kuproxy.codes import InterfaceFlag
from kuproxy.confine.lifetime import allow_locked_memory
from kuproxy.confine.privilege import AFTER_START, Capability, to_lock_memory
from kuproxy.daemon.cache_choice import OFF, CacheChoice
from kuproxy.daemon.driver import DEFAULT_DRIVER, DriverChoice
from kuproxy.daemon.flow_cache import FlowCache
from kuproxy.daemon.targets import Asking, TargetBook, joined, steering_marks, strict_replies
from kuproxy.daemon.xdp_sockets import XdpSockets
from kuproxy.drivers.af_packet import open_for_worker
from kuproxy.engine import handover
from kuproxy.engine.cached import kept_counts
from kuproxy.engine.contract import Engine
from kuproxy.engine.live import LiveEngine
from kuproxy.engine.live_worker import Attachment
from kuproxy.engine.wiring import AF_PACKET, DriverKind, Wiring
from kuproxy.errors import HandoverError, SteeringError
from kuproxy.keeper.vault import Vault
from kuproxy.model.config import InterfaceMark
from kuproxy.model.vip import Prefix
from kuproxy.plane import Plane
from kuproxy.steering.cache_maps import forget_left
from kuproxy.steering.links import KU0, KU0_MAC, KU1, KU1_MAC, is_left
from kuproxy.steering.steering import Steering
from kuproxy.steering.targets import Targets
from kuproxy.steering.xdp import Where, left_mode

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

    def rehash(self, flow_hash: bytes | None) -> None:
        """Find flows by another hash: None is VPP's, b"" a keyed one.  Raises TableFullError, changing nothing."""

    def flush(self) -> int:
        """Forget all flows; returns how many."""

    def trace(self, packets: int) -> None:
        """Trace that many packets more at each worker."""

    def check(self) -> None:
        """Raises DriverError when something that must run has ended."""

    def missing(self) -> list[int]:
        """Workers without a process: it has ended, and no other could be born yet."""

    def take_over(self) -> list[str]:
        """All sources have spoken: from now on what they ask for is steered, and nothing else. Lines for the log."""

    def processes(self) -> list[tuple[str, int]]:
        """(role, process id) of all that take part."""

    def leave(self) -> None:
        """Let go, for a successor; forwarding goes on."""

    def stop(self) -> None:
        """Leave the node as it was."""


def _words(kind: DriverKind, mode: Where) -> str:
    """A driver for the log, and for `show`."""
    return str(kind) if kind is DriverKind.AF_PACKET else f"{kind}, {mode} mode"


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
        driver: DriverChoice = DEFAULT_DRIVER,
        cache: CacheChoice = OFF,
    ) -> None:
        """With what a predecessor has left in the vault; `notes` say what became of it. Raises HandoverError.

        `filtered`: workers run under seccomp.py's filter.
        """
        self._filtered = filtered
        self._vault = vault if vault is not None else Vault()
        self.notes: list[str] = []
        self._kind, self._where = driver.resolved(), Where(driver.mode)
        self._xdp_sockets: XdpSockets | None = None
        self._marks: tuple[InterfaceMark, ...] = ()
        self._node_port_networks: frozenset[Prefix] | None = None
        workers = self._inherit(workers)
        on_xdp = self._kind is DriverKind.AF_XDP
        self.engine = LiveEngine(log2_buckets, workers, self._vault, locking=on_xdp)
        handover.leave_description(self._vault, workers)
        self.steering = Steering(
            workers, tuple(interfaces) or None, self._vault, self._where if on_xdp else None
        )
        self._cache_choice = cache
        self.cache: FlowCache | None = None
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
        self._inherit_driver()
        if not handover.same_layout(left):
            lost = handover.losses(left, handover.describe(left["workers"]))
            self.notes.append(
                f"the memory's layout has changed: copied, but for {', '.join(lost) or 'nothing'}"
            )
            handover.migrate(left, self._vault)
        return int(left["workers"])

    def _inherit_driver(self) -> None:
        """Workers go on as they are connected."""
        asked = (self._kind, self._where)
        mode = left_mode(self._vault)
        self._kind, self._where = (
            (DriverKind.AF_PACKET, self._where) if mode is None else (DriverKind.AF_XDP, mode)
        )
        same_mode = self._kind is DriverKind.AF_PACKET or asked[1] in (Where.AUTO, self._where)
        if asked[0] is not self._kind or not same_mode:
            self.notes.append(
                f"{_words(self._kind, self._where)} goes on; {_words(*asked)} needs a restart of the keeper"
            )

    @property
    def capabilities(self) -> tuple[Capability, ...]:
        """What is needed to go on, once started."""
        locking = to_lock_memory() if self._kind is DriverKind.AF_XDP else ()
        return (*AFTER_START, *locking)

    @property
    def driver(self) -> str:
        """What carries the packets, in words; once started."""
        gate = self.steering.gate
        return _words(self._kind, gate.mode if gate is not None else Where.AUTO)

    def start(self, plane: Plane) -> None:
        plane.compiler.set_interface(STEERED, int(InterfaceFlag.NAT4_IN | InterfaceFlag.NAT6_IN))
        self.steering.start()
        count = len(self.engine.workers)
        here = Attachment(KU1, _mac(KU0_MAC), _mac(KU1_MAC), *self._wiring(count), filtered=self._filtered)
        adopted = self.engine.start([here] * count)
        plane.driver = self.driver
        plane.steering = self.steering
        self._start_cache(plane)
        if adopted:
            self.notes.append(f"{adopted} of {count} workers were running, and go on")

    def _start_cache(self, plane: Plane) -> None:
        """Where it is asked for and the kernel can; else nothing is left of a predecessor's but its counts."""
        if self._cache_choice.flow_cache == "on":
            try:
                self.cache = FlowCache(self._cache_choice, self.engine, self._vault, self.steering)
                self.steering.add_cache(self.cache.maps, self._cache_choice.flow_cache_shortcuts != "off")
            except SteeringError as error:
                if self.cache is not None:
                    self.cache.maps.drop()
                    self.cache = None
                plane.cache_failure = str(error)
                self.notes.append(f"the flow cache stays off: {error}")
        if self.cache is None:
            self.steering.without_cache()
            forget_left(self._vault)
            plane.kept_counts = kept_counts(self._vault)
            return
        plane.kernel = self.cache
        asking = map(Asking.of, plane.compiler.records())
        self.cache.begin(joined(asking, plane.settings))
        self.notes.append(f"the flow cache is on, with room for {self.cache.maps.pairs} flows")

    def filenos(self) -> list[int]:
        """Readable when `follow` has something to do."""
        return [*self.steering.filenos(), *(self.cache.filenos() if self.cache is not None else ())]

    def turn(self) -> list[str]:
        """About every TURN_S; lines for the log."""
        return self.cache.turn() if self.cache is not None else []

    def _wiring(self, workers: int) -> tuple[Callable[[], dict[str, int]], Wiring]:
        """How a worker's sockets are opened, and which driver uses them."""
        namespace, gate = self.steering.namespace, self.steering.gate
        if gate is None:
            # PACKET_FANOUT_QM counts workers in the order in which their sockets are opened.
            fanout = _FANOUT if workers > 1 else None

            def open_packet_sockets() -> dict[str, int]:
                rx, tx = namespace.run(lambda: open_for_worker(KU1, fanout))
                return {"rx": rx.detach(), "tx": tx.detach()}

            return open_packet_sockets, AF_PACKET
        allow_locked_memory()
        if XdpSockets.are_left(self._vault):
            stock = XdpSockets.adopt(gate.map_fd, self._vault)
        else:
            stock = namespace.run(lambda: XdpSockets.fill(KU1, workers, gate.map_fd, self._vault))
        self._xdp_sockets = stock
        return stock.take, Wiring(DriverKind.AF_XDP, gate.mode)

    def take_over(self) -> list[str]:
        return self.steering.take_over()

    def steer(self, plane: Plane, marks: tuple[InterfaceMark, ...]) -> None:
        before, now, tunnels, done = self._targets.change(plane.compiler, plane.settings)
        if self.cache is not None:
            self.cache.follow_tables(before, now)
        targets = Targets(
            marks=steering_marks(marks),
            strict_replies=strict_replies(plane.settings),
            node_networks=self._node_port_networks,
            tunnels=tunnels,
        )
        self.steering.change(before, now, targets)
        done()
        if targets != self._general:
            self._general, self._marks = targets, marks
            self._follow_addresses(plane)

    def serve_node_ports(self, plane: Plane, networks: frozenset[Prefix] | None) -> None:
        if networks != self._node_port_networks:
            before, self._node_port_networks = self._node_port_networks, networks
            if self.cache is not None:
                self.cache.forget_node_ports()
            try:
                self.steer(plane, self._marks)
            except BaseException:
                self._node_port_networks = before
                raise

    def follow(self, plane: Plane) -> list[str]:
        """Take in what has happened on the node; call it when one of `filenos` is readable."""
        lines = self.cache.follow_ways() if self.cache is not None else []
        lines += self.steering.poll_events()
        self._follow_addresses(plane)
        return lines

    def _follow_addresses(self, plane: Plane) -> None:
        steering = self.steering
        plane.follow_node(steering.addresses, steering.node_addresses, steering.own_addresses)
        if self.cache is not None:
            self.cache.follow_addresses(steering.addresses)

    def resize(self, log2_buckets: int) -> None:
        if self.cache is None or log2_buckets == self.engine.workers[0].memory.log2_buckets:
            self.engine.resize(log2_buckets)
            return
        self.cache.clear()
        try:
            self.engine.resize(log2_buckets)
        finally:
            self.cache.moved()

    def rehash(self, flow_hash: bytes | None) -> None:
        key = self.engine.flow_key
        if self.cache is None or key.meeting(flow_hash) == key:
            self.engine.rehash(flow_hash)
            return
        self.cache.clear()
        try:
            self.engine.rehash(flow_hash)
        finally:
            self.cache.moved()

    def flush(self) -> int:
        if self.cache is not None:
            self.cache.clear()
        return self.engine.flush()

    def trace(self, packets: int) -> None:
        if self.cache is not None:
            self.cache.trace()
        self.engine.trace(packets)

    def check(self) -> None:
        self.engine.check()

    def missing(self) -> list[int]:
        return self.engine.missing()

    def processes(self) -> list[tuple[str, int]]:
        above = [("keeper", os.getppid())] if self._vault.connected else []
        return [*above, ("control", os.getpid()), *self.engine.processes()]

    def leave(self) -> None:
        self.steering.leave()
        if self.cache is not None:
            self.cache.leave()
        self.engine.leave()

    def stop(self) -> None:
        if self.cache is not None:
            self.cache.close()
        self.steering.close()
        self.engine.stop()
        if self._xdp_sockets is not None:
            self._xdp_sockets.close()
