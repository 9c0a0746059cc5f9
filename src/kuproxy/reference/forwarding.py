"""The graph, node by node: docs/forwarding.md as a program.

All packets of one vector pass a node before any of them passes the next, and within a node they come in the order in
which they arrived there, as in the compiled graph: it decides which of two new flows of one vector gets the last
place in a bucket, and whether a fragment finds the ports that the first one carried.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Network, IPv6Network

from kuproxy.codes import (
    PROTOCOLS_WITH_PORTS,
    Encap,
    Family,
    FlowState,
    InterfaceFlag,
    Node,
    Outcome,
    PodCounter,
    Reason,
    VipCounter,
    VipType,
)
from kuproxy.model.config import NAT46_PREFIX, NAT64_POOL, NAT64_PORTS
from kuproxy.model.vip import Address, Pod, Prefix, Vip, VipKey
from kuproxy.reference import direct, icmp, ports, reject, rewrite, translate
from kuproxy.reference.crossing import CROSSING, Crossing, crosses
from kuproxy.reference.flows import TICK_MASK, Flow, FlowTable, reply_of
from kuproxy.reference.fragments import FRAGMENT_TICKS, HOLD_BYTES, Fragments
from kuproxy.reference.life import Life, begins, goes_on, refuses, state_of, tcp_flags
from kuproxy.reference.numbers import Numbers
from kuproxy.reference.origins import Origins
from kuproxy.reference.packet import Endpoints, Packet, Refused, parse
from kuproxy.reference.passage import LiveFlow, Passage, RefPacket, Result
from kuproxy.reference.vips import Vips, VipState

NOT_FOR_US_ICMP6 = range(130, 138)  # multicast listener and neighbour discovery
NODE_PORT_NODE = {Family.IPV4: Node.NODEPORT4, Family.IPV6: Node.NODEPORT6}
NAT_NODE = {Family.IPV4: Node.NAT44, Family.IPV6: Node.NAT66}
IN2OUT_NODE = {Family.IPV4: Node.NAT4_IN2OUT, Family.IPV6: Node.NAT6_IN2OUT}
IN2OUT_MARK = {Family.IPV4: InterfaceFlag.NAT4_IN, Family.IPV6: InterfaceFlag.NAT6_IN}


@dataclass
class Reference(Crossing):
    """One worker. Times are ticks of 0.1 s; everything else is in docs/forwarding.md."""

    buckets: int = 1024
    timeout_ticks: int = 400
    decrement_ttl: bool = True
    any_node_address: bool = True
    pod_ranges: Iterable[Prefix] = ()
    all_node_addresses: Iterable[Address] = ()  # addresses of the node, at which node ports need not answer
    node_addresses: Iterable[Address] = ()
    reject_rate: int = 1000
    masquerade: Iterable[Address] = ()
    ip4_src_address: Address | None = None  # outer sources of tunnels
    ip6_src_address: Address | None = None
    nat46_prefix: IPv6Network = NAT46_PREFIX
    nat64_pool: IPv4Network | None = NAT64_POOL
    nat64_ports: tuple[int, int] = NAT64_PORTS
    translation_mtu: int = 0  # 0: the routing behind us knows
    own_addresses: dict[Family, Address] = field(default_factory=dict)  # sources of our ICMP errors
    flow_key: bytes = b""  # 16 bytes: flows are hashed with this key
    second_chance: bool = False  # until `end_second_chances` a change of pods leaves the former rings
    workers: int = 1  # among which this is the one of that number
    number: int = 0

    counters: Counter[tuple[Node, Reason]] = field(default_factory=Counter)
    outcomes: Counter[Outcome] = field(default_factory=Counter)  # add up to `received`; HELD: waiting now
    received: int = 0

    def __post_init__(self) -> None:
        self.node_addresses = frozenset(self.node_addresses)
        self._timeouts: dict[FlowState, int] = {}
        self.far = translate.Far(self.nat46_prefix, self.nat64_pool, self.nat64_ports)
        self._origins = Origins()
        self._origins.set(self.pod_ranges, self.all_node_addresses)
        self._vips = Vips(self._origins, self.flow_key, self.second_chance)
        self._flows = FlowTable(self.buckets, self.flow_key)
        self._interfaces: dict[int, InterfaceFlag] = {}
        self._fragments = Fragments()
        self._reject_limit = reject.RateLimit(self.reject_rate)
        self._tunnels = direct.Tunnels(
            self.ip4_src_address, self.ip6_src_address, Numbers(self.workers, self.number)
        )
        self._identifications = Numbers(self.workers, self.number)
        self._queues: dict[Node, list[Passage]] = {node: [] for node in Node}
        self._released: list[Passage] = []
        self._now = 0

    # ------------------------------------------------------------------------------------------ configuration

    def set_vip(self, vip: Vip) -> None:
        """Add it, or change it in place.  Raises ValueError if its node port belongs to another VIP."""
        self._vips.set(vip)

    def flush(self, key: VipKey, address: Address, port: int = 0) -> None:
        """The flows of a pod that was removed end with their next packets."""
        state = self._vips.by_key[key]
        for pod in state.flush(address, port):
            self._flows.flush(pod, state)
            state.pod_counters.pop(pod, None)  # they go with it: if it comes back, it is another pod

    def del_vip(self, key: VipKey) -> None:
        """Its flows are dead at once, its counters gone.  Raises KeyError if there is none."""
        self._vips.delete(key)

    def mark_interface(self, index: int, nat4_in: bool, nat6_in: bool) -> None:
        flags = InterfaceFlag(0)
        if nat4_in:
            flags |= InterfaceFlag.NAT4_IN
        if nat6_in:
            flags |= InterfaceFlag.NAT6_IN
        self._interfaces[index] = flags

    def set_timeout(self, ticks: int, state: FlowState | None = None) -> None:
        """Of one state, or of all; for expiries that are written from now on."""
        if state is None:
            self.timeout_ticks = ticks
            self._timeouts.clear()
        else:
            self._timeouts[state] = ticks

    def timeout_of(self, state: FlowState) -> int:
        return self._timeouts.get(state, self.timeout_ticks)

    def set_masquerade(self, addresses: Iterable[Address]) -> None:
        """At most one of each family."""
        self.masquerade = tuple(addresses)

    def set_origins(self, pod_ranges: Iterable[Prefix], node_addresses: Iterable[Address]) -> None:
        """Who is a pod, and which addresses are the node's own."""
        self._origins.set(pod_ranges, node_addresses)

    def end_second_chances(self) -> None:
        """The time after the last changes of pods is over."""
        self._vips.end_second_chances()

    def set_buckets(self, buckets: int, now: int) -> None:
        """All live flows are kept.  Raises ValueError, and nothing changes, if they do not fit."""
        self._flows = self._flows.resized(buckets, self.flow_key, now)
        self.buckets = buckets

    def check_buckets(self, buckets: int, now: int) -> None:
        """Raises ValueError if `set_buckets` would."""
        self._flows.resized(buckets, self.flow_key, now)

    def set_flow_key(self, key: bytes, now: int) -> None:
        """All live flows are kept.  Raises ValueError, and nothing changes, if they do not fit."""
        self._flows = self._flows.resized(self.buckets, key, now)
        self.flow_key = key
        self._vips.set_flow_key(key)

    def check_flow_key(self, key: bytes, now: int) -> None:
        """Raises ValueError if `set_flow_key` would."""
        self._flows.resized(self.buckets, key, now)

    def share_affinity(self, key: VipKey, other: Reference) -> None:
        """From now on both remember the clients' pods of this VIP together."""
        self._vips.by_key[key].affinity = other._vips.by_key[key].affinity

    # ------------------------------------------------------------------------------------------------ looking

    @property
    def vip_counters(self) -> dict[VipKey, Counter[VipCounter]]:
        return {key: state.counters for key, state in self._vips.by_key.items()}

    @property
    def pod_counters(self) -> dict[VipKey, dict[Pod, Counter[PodCounter]]]:
        """Of the pods that serve, or still have flows; ports are those at the pod."""
        return {key: dict(state.pod_counters) for key, state in self._vips.by_key.items()}

    def live_flows(self, now: int) -> list[LiveFlow]:
        return sorted(
            (
                LiveFlow(
                    flow.forward.protocol,
                    flow.forward.source,
                    flow.forward.source_port,
                    flow.forward.destination,
                    flow.forward.destination_port,
                    flow.vip.key,
                    flow.pod.address,
                    flow.pod_port,
                    flow.expires,
                    flow.source,
                    flow.source_port,
                    flow.life.state,
                )
                for flow in self._flows.live(now)
            ),
            key=lambda flow: (flow.client.version, *flow[:5]),
        )

    # ---------------------------------------------------------------------------------------------- housework

    def sweep(self, now: int) -> list[Result]:
        """Fragments that waited too long are dropped; what is dead is forgotten."""
        results = []
        for packet in self._fragments.take_expired(now):
            self.outcomes[Outcome.HELD] -= 1
            passage = Passage(packet)
            results.append(self._end(passage, Node.FRAGMENT, Outcome.DROP, Reason.FRAGMENT_TIMEOUT))
        self._flows.forget_dead(now)
        return results

    def used_pods(self, now: int) -> set[tuple[VipKey, Pod]]:
        """Those that live flows refer to."""
        return {(flow.vip.key, flow.pod) for flow in self._flows.live(now)}

    def collect(self, now: int, used: frozenset[tuple[VipKey, Pod]] = frozenset()) -> None:
        """Removed pods without live flows, here or among those `used` elsewhere, stop being pods."""
        everywhere = self.used_pods(now) | used
        for key, state in self._vips.by_key.items():
            with_flows = {pod for of, pod in everywhere if of == key}
            kept = with_flows | state.former_pods
            for pod in state.pod_counters.keys() - (state.serving | kept):
                del state.pod_counters[pod]
            state.removed_pods &= {pod.address for pod in kept}

    # ---------------------------------------------------------------------------------------------- the graph

    def receive(self, packets: Iterable[RefPacket], now: int) -> list[Result]:
        """One vector.  A result for each packet received, then one for each held fragment that was released."""
        self._now = now & TICK_MASK
        passages = [
            Passage(
                Packet(
                    bytearray(packet.data), packet.interface, packet.partial_checksum, packet.room, packet.gso
                )
            )
            for packet in packets
        ]
        self.received += len(passages)
        self._released = []
        self._fragments.begin_vector()
        self._queues[Node.INPUT].extend(passages)
        for node, work in self._nodes().items():
            for passage in self._queues[node]:
                work(passage)
            self._queues[node].clear()
        results = [passage.result for passage in passages + self._released if passage.result is not None]
        assert len(results) == len(passages) + len(self._released), "every packet has an outcome"
        return results

    def _nodes(self) -> dict[Node, Callable[[Passage], None]]:
        """In the order in which a vector visits them."""
        return {
            Node.INPUT: self._input,
            Node.FRAGMENT: self._fragment,
            Node.LOOKUP: self._lookup,
            Node.ICMP_ERROR: self._icmp_error,
            Node.NODEPORT4: lambda passage: self._nodeport(passage, Node.NODEPORT4),
            Node.NODEPORT6: lambda passage: self._nodeport(passage, Node.NODEPORT6),
            Node.BALANCE: self._balance,
            Node.MASQUERADE: self._masquerade,
            Node.NAT44: lambda passage: self._nat(passage, Node.NAT44),
            Node.NAT66: lambda passage: self._nat(passage, Node.NAT66),
            Node.NAT46: lambda passage: self._nat_crossing(passage, Node.NAT46),
            Node.NAT64: lambda passage: self._nat_crossing(passage, Node.NAT64),
            Node.NAT4_IN2OUT: lambda passage: self._in2out(passage, Node.NAT4_IN2OUT),
            Node.NAT6_IN2OUT: lambda passage: self._in2out(passage, Node.NAT6_IN2OUT),
            Node.NAT46_IN2OUT: lambda passage: self._in2out_crossing(passage, Node.NAT46_IN2OUT),
            Node.NAT64_IN2OUT: lambda passage: self._in2out_crossing(passage, Node.NAT64_IN2OUT),
            Node.REJECT: self._reject,
            Node.GRE: lambda passage: self._tunnel(passage, Node.GRE),
            Node.IPIP: lambda passage: self._tunnel(passage, Node.IPIP),
            Node.GUE: lambda passage: self._tunnel(passage, Node.GUE),
            Node.L3DSR: self._l3dsr,
            Node.ICMP: self._icmp,
        }

    def _send(self, passage: Passage, node: Node) -> None:
        self._queues[node].append(passage)

    def _count(self, node: Node, reason: Reason) -> None:
        self.counters[node, reason] += 1

    def _end(self, passage: Passage, node: Node, outcome: Outcome, reason: Reason) -> Result:
        assert passage.result is None, "a packet ends once"
        self._count(node, reason)
        self.outcomes[outcome] += 1
        passage.result = Result(
            outcome,
            reason,
            bytes(passage.packet.data),
            passage.vip.key if passage.vip else None,
            passage.pod.address if passage.pod else None,
            passage.packet.partial_checksum,
        )
        return passage.result

    # ---------------------------------------------------------------------------------------------- kp-input

    def _input(self, passage: Passage) -> None:
        try:
            parse(passage.packet)
        except Refused as refused:
            self._end(passage, Node.INPUT, refused.outcome, refused.reason)
            return
        self._send(passage, Node.FRAGMENT if passage.packet.is_fragment else Node.LOOKUP)

    # ------------------------------------------------------------------------------------------- kp-fragment

    def _fragment(self, passage: Passage) -> None:
        packet = passage.packet
        if not packet.is_later_fragment:
            self._first_fragment(passage)
            return
        first = self._fragments.first_of(packet, self._now)
        if first is not None:
            first.teach(packet)
            self._count(Node.FRAGMENT, Reason.LATER_FRAGMENT)
            self._send(passage, Node.LOOKUP)
        elif not self._may_be_ours(packet):
            self._end(passage, Node.FRAGMENT, Outcome.PASS, Reason.NO_VIP)
        elif len(packet.data) > HOLD_BYTES:
            self._end(passage, Node.FRAGMENT, Outcome.DROP, Reason.FRAGMENT_TOO_LONG)
        elif self._fragments.hold_is_full():
            self._end(passage, Node.FRAGMENT, Outcome.DROP, Reason.FRAGMENT_HOLD_FULL)
        else:
            self._fragments.hold(packet, self._after(FRAGMENT_TICKS))
            self._end(passage, Node.FRAGMENT, Outcome.HELD, Reason.FRAGMENT_HELD)

    def _first_fragment(self, passage: Passage) -> None:
        """It tells its ports and goes on; the fragments that waited for it follow."""
        first = self._fragments.enter_first(passage.packet, self._after(FRAGMENT_TICKS))
        self._count(Node.FRAGMENT, Reason.FIRST_FRAGMENT)
        self._send(passage, Node.LOOKUP)
        for packet in self._fragments.take_held_for(passage.packet):
            first.teach(packet)
            released = Passage(packet)
            self._released.append(released)
            self.outcomes[Outcome.HELD] -= 1
            self._count(Node.FRAGMENT, Reason.FRAGMENT_RELEASED)
            self._send(released, Node.LOOKUP)

    def _may_be_ours(self, packet: Packet) -> bool:
        """For a packet without ports: could any VIP, node port or flow know it?"""
        return (
            self._vips.cover(packet.destination)
            or (self._vips.have_node_ports() and self._is_node_address(packet.destination))
            or (self._is_marked(packet) and self._vips.have_pod_address(packet.source))
        )

    def _is_node_address(self, address: Address) -> bool:
        if reject.is_loopback(address):
            return False
        return self.any_node_address or address in self.node_addresses

    def _is_marked(self, packet: Packet) -> bool:
        flags = self._interfaces.get(packet.interface, InterfaceFlag(0))
        return bool(flags & IN2OUT_MARK[packet.family])

    def _after(self, ticks: int) -> int:
        return (self._now + ticks) & TICK_MASK

    # --------------------------------------------------------------------------------------------- kp-lookup

    def _lookup(self, passage: Passage) -> None:
        packet = passage.packet
        icmp_type = packet.icmp_type
        if icmp_type is not None:
            if packet.family == Family.IPV6 and icmp_type in NOT_FOR_US_ICMP6:
                self._end(passage, Node.LOOKUP, Outcome.PASS, Reason.UNSUPPORTED_PROTOCOL)
                return
            if icmp.is_error(packet):
                node_port = self._vips.have_node_ports() and self._is_node_address(packet.destination)
                if self._is_marked(packet) or node_port or self._vips.cover(packet.destination):
                    self._send(passage, Node.ICMP_ERROR)
                else:
                    self._end(passage, Node.LOOKUP, Outcome.PASS, Reason.NO_VIP)
                return

        passage.vip = self._vips.match(packet.destination, packet.protocol, packet.destination_port)
        identifier = translate.echo_identifier(packet)
        if passage.vip is not None:
            if _echo_has_port(passage.vip.vip) and identifier is not None:
                packet.source_port = identifier
            self._count(Node.LOOKUP, Reason.VIP_MATCHED)
            self._send(passage, Node.BALANCE)
            return
        is_request = icmp_type == reject.ECHO_REQUEST[packet.family] and identifier is not None
        if is_request and self._vips.cover(packet.destination):
            self._say(passage, icmp.Say.ECHO_REPLY)
            return
        is_reply = self._is_marked(packet) and self._flow_of_reply(packet.endpoints) is not None
        if packet.has_ports and not is_reply and self._is_node_address(packet.destination):
            passage.vip = self._vips.match_node_port(packet.family, packet.protocol, packet.destination_port)
            if passage.vip is not None:
                passage.by_node_port = True
                self._send(passage, NODE_PORT_NODE[packet.family])
                return
        if self._is_marked(packet):
            self._send(passage, self._in2out_node(packet))
        else:
            self._end(passage, Node.LOOKUP, Outcome.PASS, Reason.NO_VIP)

    def _in2out_node(self, packet: Packet) -> Node:
        if packet.family == Family.IPV4 and self._in_pool(packet.destination):
            return Node.NAT64_IN2OUT
        if packet.family == Family.IPV6 and packet.destination in self.far.prefix:
            return Node.NAT46_IN2OUT
        return IN2OUT_NODE[packet.family]

    def _nodeport(self, passage: Passage, node: Node) -> None:
        self._count(node, Reason.VIP_MATCHED)
        self._send(passage, Node.BALANCE)

    # -------------------------------------------------------------------------------------------- kp-balance

    def _balance(self, passage: Passage) -> None:
        state = passage.vip
        assert state is not None
        forward = passage.packet.endpoints
        if passage.packet.ttl <= 1:
            self._expire(passage, Node.BALANCE)
            return
        if crosses(state.vip) and self._cannot_cross(passage, Node.BALANCE):
            return
        if not passage.by_node_port and not state.lets_in(forward.source):
            self._end(passage, Node.BALANCE, Outcome.DROP, Reason.SOURCE_RANGE)
            return
        flags = tcp_flags(passage.packet)
        flow = self._flows.find(forward, state, self._now)
        if flow is not None and flow.flushed:
            self._flows.remove(flow, self._now)
            flow = None
            if state.vip.reset and flags is not None and not begins(flags):
                self._send(passage, Node.REJECT)
                return
        over = flow is not None and (
            flow.life.state == FlowState.TCP_CLOSING or not state.gets_new_flows(flow.pod, forward.source)
        )
        if flow is not None and over and begins(flags):
            self._flows.remove(flow, self._now)
            self._count(Node.BALANCE, Reason.CHOSEN_AFRESH)
            flow = None
        if flow is not None:
            self._touch(flow, flags, from_client=True)
            state.counters[VipCounter.NEXT_PACKET] += 1
            self._count(Node.BALANCE, Reason.EXISTING_SESSION)
            self._follow(passage, flow)
            return
        self._new_flow(passage, state, forward, flags)

    def _touch(self, flow: Flow, flags: int | None, *, from_client: bool) -> None:
        """A packet of a known flow. The end of a closing one stays where it is."""
        before = flow.life.state
        if flags is not None and not from_client:
            flow.tentative = False
        if flags is not None:
            flow.life.turn(flags, from_client=from_client)
        if not before == flow.life.state == FlowState.TCP_CLOSING:
            flow.expires = self._after(self.timeout_of(flow.life.state))

    def _new_flow(self, passage: Passage, state: VipState, forward: Endpoints, flags: int | None) -> None:
        if not state.ring_for(forward.source):
            state.counters[VipCounter.NO_SERVER] += 1
            if state.vip.reject:
                self._send(passage, Node.REJECT)
            else:
                self._end(passage, Node.BALANCE, Outcome.DROP, Reason.NO_POD)
            return
        if state.vip.session_cap and self._flows.count(state, self._now) >= state.vip.session_cap:
            self._end(passage, Node.BALANCE, Outcome.DROP, Reason.SESSION_CAP)
            return

        life = Life(state_of(forward.protocol, passage.packet.family))
        former = self._flows.to_give_way(forward, life.is_half_open, self._now)
        if former is None and self._flows.bucket_is_full(forward, self._now):
            self._untracked(passage, state, state.candidate(forward, self._now))
            return
        chosen = self._choose(state, forward)
        if isinstance(chosen, Reason):
            self._end(passage, Node.BALANCE, Outcome.DROP, chosen)
            return
        pod, source, source_port = chosen
        pod_port = state.pod_port(pod, forward.destination_port, forward.protocol)
        flow = Flow(forward, state, pod, pod_port, source, source_port, self._now, life=life)
        flow.masqueraded = (
            not flow.is_direct and not crosses(state.vip) and state.must_masquerade(pod, forward.source)
        )
        if not flow.is_direct and self._flows.line_is_full(flow.reply, self._now):
            self._untracked(passage, state, pod)
            return
        if former is not None:
            self._flows.remove(former, self._now)
            former.vip.counters[VipCounter.EVICTED] += 1
            self._count(Node.BALANCE, Reason.HALF_OPEN_EVICTED)
        life.begin(flags, direct=flow.is_direct)
        flow.expires = self._after(self.timeout_of(life.state))
        self._flows.enter(flow, self._now)
        state.remember(forward.source, pod, self._after(state.affinity_ticks))
        state.pod_counters[pod][PodCounter.FLOWS] += 1
        state.counters[VipCounter.FIRST_PACKET] += 1
        self._count(Node.BALANCE, Reason.FIRST_PACKET)
        if not flow.is_direct and goes_on(flags) and state.former_owner(forward) not in (None, pod):
            flow.tentative = True
            self._count(Node.BALANCE, Reason.TENTATIVE)
        self._follow(passage, flow)

    def _second_chance(self, flow: Flow, flags: int | None) -> bool:
        """A tentative flow's pod refuses it: may it go to the slot's former pod, as if it had begun there?"""
        state, forward = flow.vip, flow.forward
        pod = state.former_owner(forward)
        if not (refuses(flags) and flow.tentative) or pod is None or pod == flow.pod:
            return False
        pod_port = state.pod_port(pod, forward.destination_port, forward.protocol)
        way = self._way_to(state, forward, pod)
        if way is None:
            return False
        reply = reply_of(forward, pod, pod_port, *way)
        crossing = crosses(state.vip)
        taken = self._flows.find_reply(reply, self._now, crossing=crossing) is not None
        if taken or self._flows.line_is_full(reply, self._now):
            return False
        self._flows.move(flow, pod, pod_port, *way, self._now)
        flow.masqueraded = not crossing and state.must_masquerade(pod, forward.source)
        flow.tentative = False
        if flow.life.state != FlowState.TCP_CLOSING:
            flow.expires = self._after(self.timeout_of(flow.life.state))
        if state.gets_new_flows(pod, forward.source):
            state.remember(forward.source, pod, self._after(state.affinity_ticks))
        return True

    def _way_to(self, state: VipState, forward: Endpoints, pod: Pod) -> tuple[Address, int] | None:
        """The source that this pod knows the client by, if any flow to it had begun like others."""
        if state.vip.type == VipType.IP4_NAT46:
            return self.far.mapped(forward.source), forward.source_port
        if state.vip.type == VipType.IP6_NAT64:
            chosen = self._source_for_ipv6(state, forward, pod)
            return None if isinstance(chosen, Reason) else chosen[1:]
        if state.must_masquerade(pod, forward.source):
            own = next((a for a in self.masquerade if a.version == forward.source.version), None)
            port = None if own is None else self._allocate(state, forward, pod, own)
            return None if own is None or port is None else (own, port)
        return forward.source, forward.source_port

    def _choose(self, state: VipState, forward: Endpoints) -> tuple[Pod, Address, int] | Reason:
        """Pod, and the source that it is to see; or why there is none."""
        pod = state.candidate(forward, self._now)
        if state.kept_pod(forward.source, self._now) is not None:
            self._count(Node.BALANCE, Reason.AFFINITY)
        if state.vip.encap is not Encap.NAT:
            return pod, forward.source, forward.source_port  # no reply comes by that could be ambiguous
        if crosses(state.vip):
            return self._choose_crossing(state, forward, pod)
        if state.must_masquerade(pod, forward.source):
            own = next((a for a in self.masquerade if a.version == forward.source.version), None)
            if own is None:
                return Reason.NO_MASQUERADE_ADDRESS
            port = self._allocate(state, forward, pod, own)
            return Reason.MASQUERADE_EXHAUSTED if port is None else (pod, own, port)
        if self._reply_is_free(state, forward, pod, forward.source, forward.source_port):
            return pod, forward.source, forward.source_port
        for other in state.further_candidates(forward):
            if other.address != forward.source and self._reply_is_free(
                state, forward, other, forward.source, forward.source_port
            ):
                self._count(Node.BALANCE, Reason.CLASH_AVOIDED)
                return other, forward.source, forward.source_port
        port = self._allocate(state, forward, pod, forward.source)
        if port is None:
            return Reason.FLOW_CLASH
        self._count(Node.BALANCE, Reason.PORT_TRANSLATED)
        return pod, forward.source, port

    def _allocate(self, state: VipState, forward: Endpoints, pod: Pod, source: Address) -> int | None:
        """A source port towards this pod that no live flow has, and whose reply finds room."""

        def is_ours(port: int) -> bool:
            comes_back = self._comes_back(source, port, forward.protocol)
            return comes_back and not self._looks_like_node_port(source, port, forward.protocol)

        def is_free(port: int) -> bool:
            pod_port = state.pod_port(pod, forward.destination_port, forward.protocol)
            reply = reply_of(forward, pod, pod_port, source, port)
            return self._flows.find_reply(reply, self._now) is None and not self._flows.line_is_full(
                reply, self._now
            )

        if forward.protocol not in PROTOCOLS_WITH_PORTS:
            return 0 if is_ours(0) and is_free(0) else None
        return ports.allocate(forward.source_port, forward.hash(self.flow_key), is_ours, is_free)

    def _comes_back(self, source: Address, port: int, protocol: int) -> bool:
        """Do replies to this address and port come to this worker?"""
        return ports.worker_of(source, port, protocol, self.workers) == self.number

    def _looks_like_node_port(self, address: Address, port: int, protocol: int) -> bool:
        """Steering looks for node ports first; to one worker all is brought anyhow."""
        if self.workers == 1 or not self._is_node_address(address):
            return False
        return self._vips.match_node_port(Family(address.version), protocol, port) is not None

    def _reply_is_free(
        self, state: VipState, forward: Endpoints, pod: Pod, source: Address, source_port: int
    ) -> bool:
        """No live flow has the reply that this pod would send: a reply must tell to which flow it belongs."""
        pod_port = state.pod_port(pod, forward.destination_port, forward.protocol)
        reply = reply_of(forward, pod, pod_port, source, source_port)
        return self._flows.find_reply(reply, self._now) is None

    def _untracked(self, passage: Passage, state: VipState, pod: Pod) -> None:
        packet = passage.packet
        is_nat = state.vip.encap is Encap.NAT
        if crosses(state.vip) or (is_nat and state.must_masquerade(pod, packet.source)):
            self._end(passage, Node.BALANCE, Outcome.DROP, Reason.FLOW_TABLE_FULL)
            return
        state.counters[VipCounter.UNTRACKED_PACKET] += 1
        self._count(Node.BALANCE, Reason.UNTRACKED)
        self._to_pod(passage, pod, state.pod_port(pod, packet.destination_port, packet.protocol))

    def _follow(self, passage: Passage, flow: Flow) -> None:
        passage.flow = flow
        passage.pod, passage.pod_port = flow.pod, flow.pod_port
        if (
            not crosses(flow.vip.vip)
            and flow.is_translated
            and rewrite.port_is_fixed(passage.packet, flow.source_port)
        ):
            self._end(passage, Node.BALANCE, Outcome.DROP, Reason.SCTP_FRAGMENT)
            return
        self._to_pod(passage, flow.pod, flow.pod_port)

    def _to_pod(self, passage: Passage, pod: Pod, pod_port: int) -> None:
        passage.pod = pod
        passage.pod_port = pod_port
        assert passage.vip is not None
        size = _ip_length(passage.packet)
        passage.vip.counters[VipCounter.TO_POD_BYTES] += size
        passage.vip.pod_counters[pod][PodCounter.TO_POD_PACKETS] += 1
        passage.vip.pod_counters[pod][PodCounter.TO_POD_BYTES] += size
        vip = passage.vip.vip
        if vip.encap is not Encap.NAT:
            self._send(passage, direct.NODES[vip.encap])
        elif crosses(vip):
            self._send(passage, CROSSING[vip.type])
        elif passage.flow is not None and passage.flow.is_translated:
            self._send(passage, Node.MASQUERADE)
        else:
            self._send(passage, NAT_NODE[passage.packet.family])

    # --------------------------------------------------------------------------------------- kp-masquerade

    def _masquerade(self, passage: Passage) -> None:
        assert passage.flow is not None
        rewrite.set_source(passage.packet, passage.flow.source, passage.flow.source_port)
        self._count(Node.MASQUERADE, Reason.MASQUERADED)
        self._send(passage, NAT_NODE[passage.packet.family])

    # ---------------------------------------------------------------- kp4-nat4, kp6-nat6, kp-nat[46]-in2out

    def _nat(self, passage: Passage, node: Node) -> None:
        assert passage.pod is not None
        packet = passage.packet
        try:
            rewrite.set_destination(packet, passage.pod.address, passage.pod_port)
        except rewrite.SctpFragment:
            self._end(passage, node, Outcome.DROP, Reason.SCTP_FRAGMENT)
            return
        self._transmit(passage, node, Reason.FORWARDED)

    def _in2out(self, passage: Passage, node: Node) -> None:
        packet = passage.packet
        reply = packet.endpoints
        flow = self._flow_of_reply(reply)
        if flow is not None:
            passage.vip, passage.pod, addressed = flow.vip, flow.pod, flow.forward
        else:
            guesses = self._untracked_flows_of(reply)
            if len(guesses) != 1:
                self._end(passage, node, Outcome.PASS, Reason.NO_TRANSLATION)
                return
            [(passage.vip, addressed)] = guesses
            passage.pod = passage.vip.candidate(addressed, self._now)

        if packet.ttl <= 1:
            self._expire(passage, node)
            return
        if flow is not None and self._second_chance(flow, tcp_flags(packet)):
            self._end(passage, node, Outcome.DROP, Reason.SECOND_CHANCE)
            return
        if flow is not None:
            self._touch(flow, tcp_flags(packet), from_client=False)
        else:
            self._count(node, Reason.IN2OUT_UNTRACKED)
        try:
            if flow is not None and flow.is_translated:
                rewrite.set_destination(packet, flow.forward.source, flow.forward.source_port)
            rewrite.set_source(packet, addressed.destination, addressed.destination_port)
        except rewrite.SctpFragment:
            self._end(passage, node, Outcome.DROP, Reason.SCTP_FRAGMENT)
            return
        self._tally_from_pod(passage, flow)
        self._transmit(passage, node, Reason.IN2OUT)

    def _tally_from_pod(self, passage: Passage, flow: Flow | None) -> None:
        """As received: before a translation between the families."""
        assert passage.vip is not None and passage.pod is not None
        size = _ip_length(passage.packet)
        passage.vip.counters[VipCounter.FROM_POD_PACKETS] += 1
        passage.vip.counters[VipCounter.FROM_POD_BYTES] += size
        if flow is None or not flow.flushed:
            passage.vip.pod_counters[passage.pod][PodCounter.FROM_POD_PACKETS] += 1
            passage.vip.pod_counters[passage.pod][PodCounter.FROM_POD_BYTES] += size

    def _untracked_flows_of(self, reply: Endpoints) -> list[tuple[VipState, Endpoints]]:
        """Each VIP whose ring would have sent a client's packet to where this reply comes from, and that packet."""
        found = []
        for state in self._vips.by_key.values():
            addressed = state.addressed_by_client(reply, self._now)
            counted = state.counters[VipCounter.UNTRACKED_PACKET] + state.counters[VipCounter.EVICTED]
            if addressed is not None and counted and self._flows.find(addressed, state, self._now) is None:
                found.append((state, addressed))
        return found

    def _transmit(self, passage: Passage, node: Node, reason: Reason) -> None:
        if self.decrement_ttl:
            rewrite.decrement_ttl(passage.packet)
        self._end(passage, node, Outcome.TRANSMIT, reason)

    # ------------------------------------------------------------------- kp-gre, kp-ipip, kp-gue, kp-l3dsr

    def _tunnel(self, passage: Passage, node: Node) -> None:
        assert passage.vip is not None and passage.pod is not None
        packet = passage.packet
        if packet.gso:
            self._end(passage, node, Outcome.DROP, Reason.TUNNEL_GSO)
            return
        try:
            data = self._tunnels.encapsulate(
                packet, passage.vip.vip, passage.pod.address, packet.endpoints.hash(self.flow_key)
            )
        except direct.NoTunnel as refused:
            self._end(passage, node, Outcome.DROP, refused.reason)
            return
        passage.packet = replace(packet, data=data, partial_checksum=False)
        self._end(passage, node, Outcome.TRANSMIT, Reason.ENCAPSULATED)

    def _l3dsr(self, passage: Passage) -> None:
        assert passage.vip is not None and passage.pod is not None
        rewrite.set_destination(passage.packet, passage.pod.address, passage.packet.destination_port)
        direct.set_dscp(passage.packet, passage.vip.vip.dscp)
        self._transmit(passage, Node.L3DSR, Reason.FORWARDED)

    # --------------------------------------------------------------------------------------------- kp-reject

    def _reject(self, passage: Passage) -> None:
        packet = passage.packet
        if reject.must_not_be_answered(packet):
            self._end(passage, Node.REJECT, Outcome.DROP, Reason.REJECT_SUPPRESSED)
        elif not reject.is_reset(packet) and not self._reject_limit.allows(self._now):
            self._end(passage, Node.REJECT, Outcome.DROP, Reason.REJECT_RATE_LIMITED)
        elif not reject.is_reset(packet) and not self._error_fits(packet):
            self._end(passage, Node.REJECT, Outcome.DROP, Reason.REJECT_SUPPRESSED)
        else:
            passage.packet = replace(packet, data=bytearray(reject.answer(packet)), partial_checksum=False)
            self._end(passage, Node.REJECT, Outcome.TRANSMIT, Reason.REJECT_SENT)


def _echo_has_port(vip: Vip) -> bool:
    """Towards IPv4 pods an echo's identifier is allocated like a port."""
    return crosses(vip) and vip.type == VipType.IP6_NAT64


def _ip_length(packet: Packet) -> int:
    """As the header tells."""
    return packet.end - packet.l3
