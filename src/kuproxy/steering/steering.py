"""Steering as the engine sees it: start it, tell it what shall come up, let it hear the kernel's events, close it.

All methods are called from one thread, in the network namespace whose traffic is steered.  While it lives, the
node has an interface more, and programs at the ingress of the others; when the process ends, however it ends, all
of that is gone, and the node is as it was before.

The workers' side: `namespace.enter()`, then AF_PACKET on `ku1`, or AF_XDP with the sockets registered in `gate`.
Transmitted frames are addressed to `KU0_MAC`.  With several workers, PACKET_FANOUT_QM hands both directions of a flow
to one of them, as the queues of AF_XDP do.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterable
from contextlib import ExitStack
from ipaddress import ip_network

from pyroute2 import IPRoute

from ..errors import SteeringError
from . import program
from .attach import LOOPBACK, Attachments, is_wanted
from .bpf import AttachType, Link, LoadedProgram, has_tcx
from .keys import Address, ConfigBit, Network, endpoint_keys, network_keys
from .links import KU1, VethPair
from .maps import Stats, SteeringMaps
from .namespace import PrivateNamespace
from .node import NodeWatch, check_node
from .routes import VipRoutes
from .targets import MapWriter, NodePort, Pod, Targets, Vip
from .xdp import Where, XdpGate

__all__ = ["Steering"]


class Steering:
    """Brings traffic for VIPs and node ports, and pods' replies, to the workers on ku1.

    `interfaces`: names to attach to, None for every Ethernet-like one; `lo` always belongs to them.
    `xdp`: the workers want AF_XDP, with the program attached to ku1 in this mode; None: they want AF_PACKET.
    """

    def __init__(
        self, workers: int = 1, interfaces: Iterable[str] | None = None, xdp: Where | None = None
    ) -> None:
        if workers < 1:
            raise ValueError("steering needs at least one worker")
        self.workers = workers
        self._names = None if interfaces is None else frozenset(interfaces)
        self._xdp = xdp
        self.gate: XdpGate | None = None
        self._resources = ExitStack()
        self._started = False
        self._forget()

    def _forget(self) -> None:
        """What is known of the maps and the node, before the one is filled and the other looked at."""
        self._targets = Targets()
        self._addresses: frozenset[Address] = frozenset()  # of the node
        self._served: frozenset[Address] = frozenset()  # those whose node ports are in the maps
        self._networks: Counter[Network] = Counter()  # VIP networks, with the number of VIPs in each
        self._pod_addresses: Counter[Address] = Counter()
        self._marks: dict[int, int] = {}  # interface index → marks, as in the map

    # --- life ----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Create the interfaces, load and attach the programs. Nothing is steered yet.

        Raises SteeringError, with nothing left behind, when a privilege or a kernel feature is missing.
        """
        if self._started:
            raise SteeringError("steering has been started already")
        try:
            self._start()
        except BaseException:
            self.close()
            raise

    def _start(self) -> None:
        own = self._resources.enter_context
        own_close = self._resources.callback
        drop = program.drop().load()
        own_close(drop.close)
        if not has_tcx(drop):
            raise SteeringError("this kernel has no TCX links for BPF programs; Linux 6.6 or later is needed")
        self._maps = SteeringMaps()
        own_close(self._maps.close)
        self.namespace = PrivateNamespace.create()
        own_close(self.namespace.close)
        # Up to here nobody else could notice anything.
        self._netlink = own(IPRoute())
        self._netlink.bind(groups=0)  # answers only; events come over a socket of their own
        # Generic XDP leaves out one of several queues, see `program`; whether it will be that is not known yet.
        spare = self._xdp is not None and self.workers > 1
        self._pair = VethPair(self._netlink, self.namespace, self.workers + spare)
        own_close(self._pair.close)
        self._pair.bring_up_far_side(drop)
        if self._xdp is not None:
            self.gate = self._open_gate(self._xdp)
            own_close(self.gate.close)
        generic = self.gate is not None and self.gate.mode is Where.GENERIC

        def load(build: program.Builder) -> LoadedProgram:
            loaded = build(self._pair.ifindex, self.workers, generic).load(self._maps.by_name())
            own_close(loaded.close)
            return loaded

        own_close(Link(load(program.guard), self._pair.ifindex, AttachType.TCX_EGRESS).close)
        self._ingress = Attachments(load(program.steer), AttachType.TCX_INGRESS)
        own_close(self._ingress.close)
        self._egress = Attachments(load(program.reply), AttachType.TCX_EGRESS)
        own_close(self._egress.close)
        self._writer = MapWriter(self._maps)
        self._routes = VipRoutes(self._netlink, self._pair.ifindex, self._pair.next_hops())
        self._node = NodeWatch(self._netlink)
        own_close(self._node.close)
        self._follow_node()
        self._started = True

    def _open_gate(self, where: Where) -> XdpGate:
        """Packets on ku1 go into AF_XDP sockets, finished; what no socket takes meets `drop`."""
        gate = self.namespace.run(lambda: XdpGate(KU1, self.workers, where))
        try:
            self._pair.finish_packets()
        except BaseException:
            gate.close()
            raise
        return gate

    def close(self) -> None:
        """Detach, and delete the interfaces. Idempotent; also after a start that failed."""
        self._started = False
        self._resources.close()  # in reverse order: first nothing is steered any more, then the ends go
        self._forget()

    # --- what shall come up --------------------------------------------------------------------------------

    def set_targets(self, targets: Targets) -> None:
        """Steer these and nothing else. The cost follows the difference to the targets before.

        Raises SteeringError, with the former targets in force, when the maps are too small.
        """
        self._require_started()
        old = self._targets
        if targets.tunnels and not old.tunnels:
            self._pair.split_segments(True)
        self._prepare_returns(targets)
        try:
            self._change_entries(old, targets)
        except BaseException:
            self._prepare_returns(old)
            raise
        if old.tunnels and not targets.tunnels:
            self._pair.split_segments(False)
        gone = {each for each, _, _ in old.vips - targets.vips} - self._networks.keys()
        self._routes.change(remove=gone, add=self._routable(each for each, _, _ in targets.vips - old.vips))

    def _prepare_returns(self, targets: Targets) -> None:
        """All that brings replies up, except the entries; it comes first, see `MapWriter`."""
        self._count_addresses(self._targets, targets)
        self._targets = targets
        self._write_marks()
        self._follow_pods()

    def _change_entries(self, old: Targets, new: Targets) -> None:
        served = frozenset(filter(new.serves_at, self._addresses))
        remove = [
            *_vip_keys(old.vips - new.vips),
            *_pod_keys(old.pods - new.pods),
            *_node_port_keys(old.node_ports - new.node_ports, self._served),
            *_node_port_keys(old.node_ports & new.node_ports, self._served - served),
        ]
        add = [
            *_vip_keys(new.vips - old.vips),
            *_pod_keys(new.pods - old.pods),
            *_node_port_keys(new.node_ports - old.node_ports, served),
            *_node_port_keys(old.node_ports & new.node_ports, served - self._served),
        ]
        self._writer.apply(remove, add)
        self._served = served

    def _count_addresses(self, old: Targets, new: Targets) -> None:
        for network, _, _ in new.vips - old.vips:
            self._networks[network] += 1
        for network, _, _ in old.vips - new.vips:
            _decrement(self._networks, network)
        for address, _, _ in new.pods - old.pods:
            self._pod_addresses[address] += 1
        for address, _, _ in old.pods - new.pods:
            _decrement(self._pod_addresses, address)

    def _routable(self, networks: Iterable[Network]) -> set[Network]:
        """Not the node's own addresses, which the kernel delivers anyhow; and never the default route."""
        own = {ip_network(address) for address in self._addresses}
        return {each for each in networks if each.prefixlen > 0 and each not in own}

    # --- what happens on the node ----------------------------------------------------------------------------

    def fileno(self) -> int:
        """Readable when `poll_events` has something to do."""
        self._require_started()
        return self._node.fileno()

    def poll_events(self) -> list[str]:
        """Follow the node's interfaces and addresses, without waiting; returns a line for the log per change."""
        self._require_started()
        return self._follow_node() if self._node.poll() else []

    def _follow_node(self) -> list[str]:
        wanted = [each for each in self._node.interfaces.values() if is_wanted(each, self._names)]
        lines = self._ingress.sync(wanted)
        self._follow_pods()
        self._write_marks()
        self._routes.set_mtu(min((each.mtu for each in wanted if each.name != LOOPBACK), default=0))
        self._routes.set_sources({family: self._node.primary_address(family) for family in (4, 6)})
        if self._addresses != self._node.addresses:
            lines += self._follow_addresses()
        return lines

    def _follow_addresses(self) -> list[str]:
        """Node ports at the node's addresses; routes to VIPs that are none of them."""
        before, self._addresses = self._addresses, self._node.addresses
        self._change_entries(self._targets, self._targets)
        routable = self._routable(self._networks)
        self._routes.change(remove=self._routes.networks - routable, add=routable - self._routes.networks)
        return [
            *(f"node address {each} is gone" for each in before - self._addresses),
            *(f"node address {each} is new" for each in self._addresses - before),
        ]

    def _follow_pods(self) -> None:
        """Watch the egress too while there are pods: the node's own errors, and replies of pods at its addresses."""
        local = any(address in self._pod_addresses for address in self._node.addresses)
        self._writer.set_config(ConfigBit.LOCAL_PODS, local)
        interfaces = self._node.interfaces.values()
        self._egress.sync(
            [each for each in interfaces if self._pod_addresses and is_wanted(each, self._names)]
        )

    def _write_marks(self) -> None:
        marks = self._targets.marks
        if marks is None:
            self._writer.set_config(ConfigBit.MARKED, False)
            wanted: dict[int, int] = {}
        else:
            names = {each.name: each.ifindex for each in self._node.interfaces.values()}
            wanted = {names[name]: flags for name, flags in marks.items() if name in names}
        changed = {index: flags for index, flags in wanted.items() if self._marks.get(index) != flags}
        self._maps.interfaces.update({_u32(index): _u32(flags) for index, flags in changed.items()})
        self._maps.interfaces.delete(_u32(index) for index in self._marks.keys() - wanted.keys())
        self._marks = wanted
        if marks is not None:
            self._writer.set_config(ConfigBit.MARKED, True)

    # --- what there is to say --------------------------------------------------------------------------------

    @property
    def attached(self) -> list[str]:
        """Names of the interfaces whose traffic is looked at."""
        return self._ingress.names

    @property
    def node_addresses(self) -> frozenset[Address]:
        """Addresses of the node at which node ports are served."""
        self._require_started()
        return frozenset(filter(self._targets.serves_at, self._node.addresses))

    @property
    def own_addresses(self) -> list[Address]:
        """What the node itself would send from: its primary address of each family that it has one of."""
        self._require_started()
        return [each for family in (4, 6) if (each := self._node.primary_address(family)) is not None]

    @property
    def warnings(self) -> list[str]:
        """What will not work as it should, one sentence each: settings of the node, interfaces, routes."""
        self._require_started()
        lines = check_node(self._targets.families)
        lines += [f"interface {name}: {why}" for name, why in sorted(self._ingress.failures.items())]
        if self._names is not None:
            missing = self._names - {each.name for each in self._node.interfaces.values()}
            lines += [f"interface {name} is not there (yet)" for name in sorted(missing)]
        for network, why in self._routes.refused.items():
            lines.append(f"no route to {network} for processes on this node: {why}")
        return lines

    def stats(self) -> Stats:
        self._require_started()
        return self._maps.read_stats()

    def _require_started(self) -> None:
        if not self._started:
            raise SteeringError("steering is not running")


def _vip_keys(vips: Iterable[Vip]) -> Iterable[bytes]:
    for network, protocol, port in vips:
        yield from network_keys(network, protocol, port)


def _pod_keys(pods: Iterable[Pod]) -> Iterable[bytes]:
    for address, protocol, port in pods:
        yield from endpoint_keys(address, protocol, port, returning=True)


def _node_port_keys(node_ports: Iterable[NodePort], addresses: Iterable[Address]) -> Iterable[bytes]:
    by_family: dict[int, list[Address]] = {4: [], 6: []}
    for address in addresses:
        by_family[address.version].append(address)
    for family, protocol, port in node_ports:
        for address in by_family[family]:
            yield from endpoint_keys(address, protocol, port)


def _decrement(counter: Counter, key: object) -> None:
    counter[key] -= 1
    if not counter[key]:
        del counter[key]


def _u32(value: int) -> bytes:
    return struct.pack("=I", value)
