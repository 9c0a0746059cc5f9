"""Steering as the engine sees it: start it, tell it what shall come up, let it hear the kernel's events, close it.

All methods are called from one thread, in the network namespace whose traffic is steered.  While it lives, the
node has an interface more, and programs at the ingress of the others; when the last process that holds them ends,
however it ends, all of that is gone, and the node is as it was before.

With a keeper, interfaces and attached programs outlive this process.  A successor fills maps of its own while its
predecessor's programs go on with theirs, and then puts its programs into the same links (`take_over`).

The workers' side: `namespace.enter()`, then AF_PACKET on `ku1`, or AF_XDP with the sockets registered in `gate`.
Transmitted frames are addressed to `KU0_MAC`.  With several workers, PACKET_FANOUT_QM hands both directions of a flow
to one of them, as the queues of AF_XDP do.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Collection, Iterable
from contextlib import ExitStack

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from ..errors import SteeringError
from ..keeper.vault import Vault
from . import program
from .attach import LOOPBACK, Attachments, drop_left, is_wanted
from .bpf import AttachType, LoadedProgram, has_tcx
from .cache_maps import CacheMaps, has_ipv6_sums
from .cache_program import cache as cache_program
from .keys import Address, ConfigBit, endpoint_keys
from .links import KU0, KU1, VethPair, is_left, read_sysctl
from .maps import Stats, SteeringMaps
from .namespace import PrivateNamespace
from .node import NodeWatch, check_node
from .relations import Relations
from .routes import VipRoutes
from .targets import (
    Asked,
    MapWriter,
    NodePort,
    Targets,
    decrement,
    node_port_keys,
    pod_keys,
    translated_keys,
    vip_keys,
)
from .wanted_routes import WantedRoutes
from .xdp import Where, XdpGate

__all__ = ["Steering"]

CACHE = "cache"  # what the cache program's links are kept as


class Steering:
    """Brings traffic for VIPs and node ports, and pods' replies, to the workers on ku1.

    `interfaces`: names to attach to, None for every Ethernet-like one; `lo` always belongs to them.
    `xdp`: the workers want AF_XDP, with the program attached to ku1 in this mode; None: they want AF_PACKET.
    """

    def __init__(
        self,
        workers: int = 1,
        interfaces: Iterable[str] | None = None,
        vault: Vault | None = None,
        xdp: Where | None = None,
    ) -> None:
        if workers < 1:
            raise ValueError("steering needs at least one worker")
        self.workers = workers
        self._vault = vault if vault is not None else Vault()
        self._waiting = False  # a predecessor's programs are still in charge
        self._names = None if interfaces is None else frozenset(interfaces)
        self._xdp = xdp
        self.gate: XdpGate | None = None
        self._cached: Attachments | None = None  # the flow cache's program
        self._resources = ExitStack()
        self._started = False
        self._refused = 0
        self._forget()

    def _forget(self) -> None:
        """What is known of the maps and the node, before the one is filled and the other looked at."""
        # As last set as a whole; without VIPs, node ports and pods where these are told by their differences.
        self._targets = Targets()
        self._node_ports: Counter[NodePort] = Counter()
        self._pods = 0  # how often pods are asked for
        self._addresses: frozenset[Address] = frozenset()  # of the node
        self._served: frozenset[Address] = frozenset()  # those whose node ports are in the maps
        self._marks: dict[int, int] = {}  # interface index → marks, as in the map

    # --- life ----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Create the interfaces, load and attach the programs. Nothing is steered yet.

        Raises SteeringError, with nothing left behind, when a privilege or a kernel feature is missing; what a
        predecessor has left stays as it is.
        """
        if self._started:
            raise SteeringError("steering has been started already")
        try:
            self._start()
        except BaseException:
            if self._waiting:
                self.leave()
            else:
                self.close()
            raise

    def _start(self) -> None:
        own = self._resources.enter_context
        own_close = self._resources.callback
        drop = program.drop().load()
        own_close(drop.close)
        if not has_tcx(drop):
            raise SteeringError("this kernel has no TCX links for BPF programs; Linux 6.6 or later is needed")
        self._maps = SteeringMaps(self.workers)
        own_close(self._maps.close)
        self._waiting = is_left(self._vault)
        if self._waiting:
            self.namespace = PrivateNamespace(self._vault.take("namespace"))
        else:
            self.namespace = PrivateNamespace.create()
            self._vault.keep({"namespace": self.namespace.fd})
        own_close(lambda: self._vault.drop("namespace"))
        own_close(self.namespace.close)
        # Up to here nobody else could notice anything.
        self._netlink = own(IPRoute())
        self._netlink.bind(groups=0)  # answers only; events come over a socket of their own
        # Generic XDP leaves out one of several queues, see `choose`; whether it will be that is not known yet.
        spare = self._xdp is not None and self.workers > 1
        self._pair = VethPair(self._netlink, self.namespace, self.workers + spare, self._vault)
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

        self._pair.guard(load(program.guard))
        self._ingress = Attachments(load(program.steer), AttachType.TCX_INGRESS, self._vault)
        own_close(self._ingress.close)
        self._egress = Attachments(load(program.reply), AttachType.TCX_EGRESS, self._vault)
        own_close(self._egress.close)
        self._writer = MapWriter(self._maps)
        self._routes = VipRoutes(self._netlink, self._pair.ifindex, self._pair.next_hops())
        self._wanted = WantedRoutes(self._routes, self._waiting)
        self._node = NodeWatch(self._netlink)
        own_close(self._node.close)
        self._relations = Relations(self._maps.related)
        own_close(self._relations.close)
        self._follow_node()
        self._started = True

    def add_cache(self, maps: CacheMaps, shortcuts: bool = False) -> None:
        """Let flows that are entered in these maps be rewritten where their packets arrive, from `take_over` on.

        `shortcuts`: rows may name shorter ways than the one into the node.
        Not on `lo`: what the node says to itself is not cached. Raises SteeringError, changing nothing.
        """
        self._require_started()
        build = cache_program(self._pair.ifindex, has_ipv6_sums(), shortcuts)
        loaded = build.load({**self._maps.by_name(), **maps.by_name()})
        self._resources.callback(loaded.close)
        self._cached = Attachments(loaded, AttachType.TCX_INGRESS, self._vault, CACHE, before=self._ingress)
        self._resources.callback(self._cached.close)
        self._follow_node()

    def without_cache(self) -> None:
        """Have nobody look into a cache that a predecessor had."""
        drop_left(self._vault, CACHE)

    def take_over(self) -> list[str]:
        """From now on our programs decide, by the targets that were set; returns lines for the log.

        Without a predecessor nothing is to be done.
        """
        self._require_started()
        if not self._waiting:
            return []
        self._waiting = False
        self._pair.split_segments(self._targets.tunnels)
        self._ingress.take_over()
        self._egress.take_over()
        if self._cached is not None:
            self._cached.take_over()
        self._wanted.take_over()
        return self._follow_node()

    def leave(self) -> None:
        """Let go, for a successor: everything stays as it is, and in the vault."""
        self._started = False
        self._cached = None
        self._resources.pop_all()

    def _open_gate(self, where: Where) -> XdpGate:
        """Packets on ku1 go into AF_XDP sockets, finished; what no socket takes meets `drop`."""
        gate = XdpGate.adopt(self._vault) if self._waiting else None
        if gate is None:
            gate = self.namespace.run(lambda: XdpGate(KU1, self.workers, where, self._vault))
        try:
            self._pair.finish_packets()
        except BaseException:
            gate.close()
            raise
        return gate

    def close(self) -> None:
        """Detach, and delete the interfaces. Idempotent; also after a start that failed."""
        self.refused()
        self._started = False
        self._cached = None
        self._resources.close()  # in reverse order: first nothing is steered any more, then the ends go
        self._forget()

    # --- what shall come up --------------------------------------------------------------------------------

    def set_targets(self, targets: Targets) -> None:
        """Steer these and nothing else. The cost of what reaches the kernel follows the difference to those before.

        Raises SteeringError, with the former targets in force, when the maps are too small.
        """
        old = self._targets
        self.change(old.beyond(targets), targets.beyond(old), targets)

    def change(self, remove: Asked, add: Asked, targets: Targets) -> None:
        """Steer what is added and no more what is removed; of `targets` only marks, networks and tunnels are looked at.

        The cost follows the difference. Raises SteeringError, changing nothing, when the maps are too small.
        """
        self._require_started()
        old, self._targets = self._targets, targets
        if targets.tunnels and not old.tunnels:
            self._pair.split_segments(True)
        before = self._pods
        coming = list(pod_keys(add.pods))
        try:
            # All that brings replies up, except the entries, comes first; see `MapWriter`.
            self._pods += len(add.pods)
            if targets.marks != old.marks:
                self._write_marks()
            self._writer.set_config(ConfigBit.STRICT, targets.strict_replies)
            if coming:
                self._follow_pods(coming)
            self._change_entries(remove, add, coming)
        except BaseException:
            self._targets, self._pods = old, before
            self._write_marks()
            self._writer.set_config(ConfigBit.STRICT, old.strict_replies)
            self._follow_pods()
            raise
        self._pods -= len(remove.pods)
        if remove.pods:
            self._follow_pods()
        if old.tunnels and not targets.tunnels:
            self._pair.split_segments(False)
        self._wanted.change(remove, add)

    def _change_entries(self, remove: Asked, add: Asked, pods: Iterable[bytes] = ()) -> None:
        served = frozenset(filter(self._targets.serves_at, self._addresses))
        moved = served != self._served  # where node ports are served that were there before, too
        # Those that stay, at the addresses that come and go; the others where they were, or are to be.
        staying = [each for each, count in self._node_ports.items() if moved for _ in range(count)]
        gone = [
            *vip_keys(remove.vips),
            *translated_keys(remove.translated),
            *pod_keys(remove.pods),
            *node_port_keys(remove.node_ports, served),
            *node_port_keys(staying, self._served - served),
        ]
        new = [
            *vip_keys(add.vips),
            *translated_keys(add.translated),
            *pods,
            *node_port_keys(add.node_ports, served),
            *node_port_keys(staying, served - self._served),
        ]
        self._writer.apply(gone, new)
        self._served = served
        self._node_ports.update(add.node_ports)
        for each in remove.node_ports:
            decrement(self._node_ports, each)

    # --- what happens on the node ----------------------------------------------------------------------------

    def filenos(self) -> list[int]:
        """Readable when `poll_events` has something to do."""
        self._require_started()
        return [self._node.fileno(), self._relations.fileno()]

    def poll_events(self) -> list[str]:
        """Follow interfaces, addresses and routes, without waiting; returns a line for the log per change."""
        self._require_started()
        routes, node = self._relations.poll(), self._node.poll()
        return self._follow_node() if routes or node else []

    def _follow_node(self) -> list[str]:
        wanted = [each for each in self._node.interfaces.values() if is_wanted(each, self._names)]
        lines = [] if self._waiting else self._ingress.sync(wanted)
        if self._cached is not None and not self._waiting:
            self._cached.sync([each for each in wanted if each.name != LOOPBACK])
        self._relations.sync(self._node.interfaces.values())
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
        self._change_entries(Asked(), Asked())
        self._wanted.follow(self._addresses)
        return [
            *(f"node address {each} is gone" for each in before - self._addresses),
            *(f"node address {each} is new" for each in self._addresses - before),
        ]

    def _follow_pods(self, coming: Collection[bytes] = ()) -> None:
        """Watch the egress too while there are pods: the node's own errors, and replies of pods at its addresses.

        `coming`: keys of pods that are about to be entered.
        """
        own = {endpoint_keys(each, 0, 0, returning=True)[0] for each in self._node.addresses}
        local = any(key in self._writer.entries for key in own) or not own.isdisjoint(coming)
        self._writer.set_config(ConfigBit.LOCAL_PODS, local)
        if self._waiting:
            return
        interfaces = self._node.interfaces.values()
        self._egress.sync([each for each in interfaces if self._pods and is_wanted(each, self._names)])

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
    def addresses(self) -> frozenset[Address]:
        """All addresses by which the node, or a process on it, is known to others."""
        self._require_started()
        return self._node.addresses

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
        families = self._wanted.families | {each[0] for each in self._node_ports}
        lines = check_node(families)
        lines += self._untold(families)
        for each in (self._ingress, self._cached):
            failures = each.failures if each is not None else {}
            lines += [f"interface {name}: {why}" for name, why in sorted(failures.items())]
        if self._names is not None:
            missing = self._names - {each.name for each in self._node.interfaces.values()}
            lines += [f"interface {name} is not there (yet)" for name in sorted(missing)]
        for network, why in self._routes.refused.items():
            lines.append(f"no route to {network} for processes on this node: {why}")
        return lines

    def _untold(self, families: Collection[int]) -> list[str]:
        """Where the programs cannot learn through which interface a pod is reached."""
        forwards = read_sysctl(f"ipv6/conf/{KU0}/forwarding") == "1"
        if 6 not in families or forwards or not self._targets.strict_replies or self._targets.marks is not None:
            return []
        return [
            f"IPv6 forwarding is off at {KU0}: the kernel does not say where pods are, "
            "so that their replies are taken wherever they come in; mark interfaces, or let the node forward"
        ]

    def programs_at_egress(self, ifindex: int) -> int:
        """How many programs of ours stand at an interface's egress."""
        return int(self._egress.link(ifindex) is not None)

    def refused(self) -> int:
        """Packets in a pod's name that came in where they may not; after `close`, as of then."""
        if self._started:
            self._refused = self._maps.read_stats().refused
        return self._refused

    def way_to(self, pod: Address, client: Address) -> str:
        """Names of the interfaces by which replies of a pod to a client may come in, where nothing is marked.

        Empty where it is not known, for example where the kernel has no way back to the client.
        """
        if not self._started:
            return ""
        try:
            (route, *_) = self._netlink.route("get", dst=str(pod), src=str(client), iif=self._pair.ifindex)
        except NetlinkError:
            return ""
        names = {each.ifindex: each.name for each in self._node.interfaces.values()}
        return " or ".join(sorted(names.get(index, "") for index in self._relations.alike(route.get("oif"))))

    def stats(self) -> Stats:
        self._require_started()
        return self._maps.read_stats()

    def _require_started(self) -> None:
        if not self._started:
            raise SteeringError("steering is not running")


def _u32(value: int) -> bytes:
    return struct.pack("=I", value)
