"""The nodes that know two families, and those of ICMP: a part of `Reference`, apart because of its size.

Sections "Translation", kp-icmp and kp-icmp-error of docs/forwarding.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address
from typing import TYPE_CHECKING

from kuproxy.codes import Encap, Family, Node, Outcome, Protocol, Reason, VipType
from kuproxy.model.vip import Address, Pod, Vip
from kuproxy.reference import direct, icmp, translate
from kuproxy.reference.flows import Flow, FlowTable, reply_of
from kuproxy.reference.fragments import HOLD_SLOTS, Fragments
from kuproxy.reference.icmp import Say
from kuproxy.reference.life import tcp_flags
from kuproxy.reference.numbers import Numbers
from kuproxy.reference.packet import Endpoints, Packet
from kuproxy.reference.passage import Passage, Result
from kuproxy.reference.reject import RateLimit
from kuproxy.reference.translate import Ends, Far, Quoted
from kuproxy.reference.vips import Vips, VipState

CROSSING = {VipType.IP4_NAT46: Node.NAT46, VipType.IP6_NAT64: Node.NAT64}
MOST_PORTS_TRIED = 1024


def crosses(vip: Vip) -> bool:
    """Are its packets translated into the other family? Tunnels carry either family in either."""
    return vip.encap is Encap.NAT and vip.type in CROSSING


class Crossing:
    """What `Reference` inherits; what it lends is declared here."""

    far: Far
    translation_mtu: int
    decrement_ttl: bool
    flow_key: bytes
    own_addresses: dict[Family, Address]
    workers: int
    _identifications: Numbers  # of IPv4 packets made from IPv6 ones
    _now: int
    _flows: FlowTable
    _vips: Vips
    _fragments: Fragments
    _reject_limit: RateLimit
    _released: list[Passage]

    if TYPE_CHECKING:

        def _send(self, passage: Passage, node: Node) -> None: ...
        def _count(self, node: Node, reason: Reason) -> None: ...
        def _end(self, passage: Passage, node: Node, outcome: Outcome, reason: Reason) -> Result: ...
        def _after(self, ticks: int) -> int: ...
        def _comes_back(self, source: Address, port: int, protocol: int) -> bool: ...
        def _touch(self, flow: Flow, flags: int | None, *, from_client: bool) -> None: ...
        def _second_chance(self, flow: Flow, flags: int | None) -> bool: ...
        def _tally_from_pod(self, passage: Passage, flow: Flow | None) -> None: ...
        def _is_marked(self, packet: Packet) -> bool: ...
        def _is_node_address(self, address: Address) -> bool: ...

    # ------------------------------------------------------------------------------------------- kp-icmp

    def _say(self, passage: Passage, say: Say, value: int = 0) -> None:
        passage.say, passage.value = say, value
        self._send(passage, Node.ICMP)

    def _expire(self, passage: Passage, node: Node) -> None:
        self._count(node, Reason.TTL_EXPIRED)
        self._say(passage, Say.TIME_EXCEEDED)

    def _icmp(self, passage: Passage) -> None:
        packet, say = passage.packet, passage.say
        assert say is not None
        if say is Say.ECHO_REPLY:
            if icmp.may_be_told(packet):
                passage.packet = replace(packet, data=bytearray(icmp.echo_reply(packet)))
                self._end(passage, Node.ICMP, Outcome.TRANSMIT, say.value)
            else:
                self._end(passage, Node.ICMP, Outcome.DROP, Reason.ERROR_SUPPRESSED)
        elif not icmp.may_be_error(packet):
            self._end(passage, Node.ICMP, Outcome.DROP, Reason.ERROR_SUPPRESSED)
        elif not self._reject_limit.allows(self._now):
            self._end(passage, Node.ICMP, Outcome.DROP, Reason.ERROR_RATE_LIMITED)
        elif not self._error_fits(packet):
            self._end(passage, Node.ICMP, Outcome.DROP, Reason.ERROR_SUPPRESSED)
        else:
            own = self.own_addresses.get(packet.family)
            data = bytearray(icmp.own_error(packet, say, passage.value, own))
            passage.packet = replace(packet, data=data, partial_checksum=False)
            self._end(passage, Node.ICMP, Outcome.TRANSMIT, say.value)

    @staticmethod
    def _error_fits(packet: Packet) -> bool:
        """Header and eight bytes of the packet, and there is room for them."""
        header = 20 if packet.family == Family.IPV4 else 40
        return min(packet.end, packet.room - header - 8) - packet.l3 >= header + 8

    # -------------------------------------------------------------------------------------- towards the pod

    def _cannot_cross(self, passage: Passage, node: Node) -> bool:
        packet = passage.packet
        if packet.family == Family.IPV4 and translate.has_source_route(packet):
            self._say(passage, Say.SOURCE_ROUTE)
            return True
        segments_left_at = translate.segments_left_at(packet) if packet.family == Family.IPV6 else None
        if segments_left_at is not None:
            self._say(passage, Say.PARAMETER_PROBLEM, segments_left_at)
            return True
        reason = translate.refusal(packet)
        if reason is not None:
            self._end(passage, node, Outcome.DROP, reason)
        return reason is not None

    def _choose_crossing(
        self, state: VipState, forward: Endpoints, pod: Pod
    ) -> tuple[Pod, Address, int] | Reason:
        """Pod, and what the client is called there; or why there is none. `pod` is the candidate."""
        if state.vip.type == VipType.IP4_NAT46:
            return self._pod_for_ipv4(state, forward, pod)
        return self._source_for_ipv6(state, forward, pod)

    def _pod_for_ipv4(
        self, state: VipState, forward: Endpoints, candidate: Pod
    ) -> tuple[Pod, Address, int] | Reason:
        source = self.far.mapped(forward.source)
        for step, pod in enumerate([candidate, *state.further_candidates(forward)]):
            pod_port = state.pod_port(pod, forward.destination_port, forward.protocol)
            reply = reply_of(forward, pod, pod_port, source, forward.source_port)
            if self._flows.find_reply(reply, self._now, crossing=True) is None:
                if step:
                    self._count(Node.BALANCE, Reason.CLASH_AVOIDED)
                return pod, source, forward.source_port
        return Reason.FLOW_CLASH

    def _source_for_ipv6(
        self, state: VipState, forward: Endpoints, pod: Pod
    ) -> tuple[Pod, Address, int] | Reason:
        pod_port = state.pod_port(pod, forward.destination_port, forward.protocol)
        for address, port in self._sources_from(forward.hash(self.flow_key)):
            reply = reply_of(forward, pod, pod_port, address, port)
            taken = self._flows.find_reply(reply, self._now, crossing=True) is not None
            comes_back = self._comes_back(address, port, forward.protocol)
            if comes_back and not taken and not self._flows.line_is_full(reply, self._now):
                return pod, address, port
        return Reason.PORTS_EXHAUSTED

    def _sources_from(self, first: int) -> Iterator[tuple[IPv4Address, int]]:
        """Addresses and ports of the pool, from where the hash says."""
        if self.far.pool is None:
            return
        low, high = self.far.ports
        ports = high - low + 1
        space = self.far.pool.num_addresses * ports
        for step in range(min(space, MOST_PORTS_TRIED * self.workers)):
            which = (first + step) % space
            yield self.far.pool[which // ports], low + which % ports

    def _nat_crossing(self, passage: Passage, node: Node) -> None:
        flow, packet = passage.flow, passage.packet
        assert flow is not None
        to, back = flow.pod.address, flow.reply
        source_port: int | None = back.destination_port
        if packet.is_icmp and packet.family == Family.IPV4:
            source_port = None  # the client's own identifier
        self._cross(passage, node, Ends(back.destination, to, source_port, flow.pod_port), Reason.FORWARDED)

    # ----------------------------------------------------------------------------------- towards the client

    def _flow_of_reply(self, reply: Endpoints) -> Flow | None:
        """What the destination stands for tells whether it is a flow between the families."""
        crossing = self._stands_for_client(reply.destination)
        return self._flows.find_reply(reply, self._now, crossing=crossing)

    def _stands_for_client(self, address: Address) -> bool:
        return self._in_pool(address) or address in self.far.prefix

    def _in2out_crossing(self, passage: Passage, node: Node) -> None:
        packet = passage.packet
        reply = packet.endpoints
        identifier = translate.echo_identifier(packet)
        if packet.family == Family.IPV4 and identifier is not None:
            reply = replace(reply, destination_port=identifier)
        flow = self._flow_of_reply(reply)
        if flow is None:
            self._end(passage, node, Outcome.PASS, Reason.NO_TRANSLATION)
            return
        passage.vip, passage.pod = flow.vip, flow.pod
        if packet.ttl <= 1:
            self._expire(passage, node)
            return
        if self._cannot_cross(passage, node):
            return
        if self._second_chance(flow, tcp_flags(packet)):
            self._end(passage, node, Outcome.DROP, Reason.SECOND_CHANCE)
            return
        self._touch(flow, tcp_flags(packet), from_client=False)
        self._tally_from_pod(passage, flow)
        addressed = flow.forward
        source_port: int | None = addressed.destination_port
        if packet.is_icmp:
            source_port = None if packet.family == Family.IPV6 else addressed.source_port
        ends = Ends(addressed.destination, addressed.source, source_port, addressed.source_port)
        self._cross(passage, node, ends, Reason.IN2OUT)

    # ----------------------------------------------------------------------------------------- both directions

    def _cross(self, passage: Passage, node: Node, new: Ends, reason: Reason) -> None:
        packet = passage.packet
        same_ports = (packet.source_port, packet.destination_port) == (new.source_port, new.destination_port)
        if packet.protocol == Protocol.SCTP and packet.is_fragment and not same_ports:
            self._end(passage, node, Outcome.DROP, Reason.SCTP_FRAGMENT)
            return
        if packet.family == Family.IPV4:
            self._cross_to_6(passage, node, new, reason)
        else:
            self._cross_to_4(passage, node, new, reason)

    def _payload(self, packet: Packet, new: Ends) -> bytes:
        l4 = bytes(packet.data[packet.l4 : packet.end])
        if packet.is_later_fragment:
            return l4
        old = Ends(packet.source, packet.destination)
        lacks_checksum = (
            packet.protocol == Protocol.UDP
            and new.source.version == 6
            and not packet.partial_checksum
            and packet.word(packet.l4 + 6) == 0
        )
        l4 = translate.translated_l4(l4, packet.protocol, old, new, len(l4), partial=packet.partial_checksum)
        return translate.with_udp_checksum(l4, new) if lacks_checksum else l4

    def _cross_to_6(self, passage: Passage, node: Node, new: Ends, reason: Reason) -> None:
        packet = passage.packet
        header = translate.header_of(packet)
        length = packet.end - packet.l4
        size = 40 + 8 * packet.is_fragment + length
        pieces = [range(length)]
        if packet.gso:
            pass  # its segments are as short as they must be
        elif header.dont_fragment:
            if self.translation_mtu and size > self.translation_mtu:
                mtu = self.translation_mtu - 20 - 8 * packet.is_fragment
                self._say(passage, Say.TOO_BIG, mtu)
                return
        elif size > translate.LEAST_MTU6:
            whole_checksum = not packet.partial_checksum or (
                not packet.is_fragment and packet.protocol != Protocol.SCTP
            )
            if whole_checksum:
                step = translate.PIECE
                pieces = [range(at, min(at + step, length)) for at in range(0, length, step)]
                if len(pieces) - 1 > HOLD_SLOTS - self._fragments.places_taken():
                    self._end(passage, node, Outcome.DROP, Reason.FRAGMENT_HOLD_FULL)
                    return
        l4 = self._payload(packet, new)
        splits = len(pieces) > 1
        protocol = translate.other_protocol(packet.protocol)
        partial = packet.partial_checksum and not (packet.is_icmp and not packet.is_later_fragment)
        if splits and partial:
            l4, partial = translate.with_complete_checksum(l4, protocol), False
        header = replace(header, ttl=header.ttl - self.decrement_ttl, protocol=protocol)
        frames = []
        for piece in pieces:
            cut = replace(
                header, offset=header.offset + piece.start // 8, more=header.more or piece.stop < length
            )
            ip = translate.ipv6_header(
                cut, new.source, new.destination, len(piece), packet.is_fragment or splits
            )
            frames.append(translate.ethernet_of(packet, Family.IPV6) + ip + l4[piece.start : piece.stop])
        passage.packet = replace(packet, data=bytearray(frames[0]), partial_checksum=partial)
        for data in frames[1:]:
            self._fragments.take_place()
            extra = replace(passage, packet=replace(passage.packet, data=bytearray(data)))
            extra.result = Result(
                Outcome.TRANSMIT,
                reason,
                data,
                extra.vip.key if extra.vip else None,
                extra.pod.address if extra.pod else None,
                partial,
            )
            self._released.append(extra)
            self._count(node, Reason.FRAGMENTED)
        self._end(passage, node, Outcome.TRANSMIT, reason)

    def _cross_to_4(self, passage: Passage, node: Node, new: Ends, reason: Reason) -> None:
        packet = passage.packet
        header = translate.header_of(packet)
        size = 20 + packet.end - packet.l4
        mtu = 0xFFFF if packet.gso or not self.translation_mtu else self.translation_mtu
        if size > mtu:
            self._say(passage, Say.TOO_BIG, mtu + 20 + 8 * packet.is_fragment)
            return
        if not packet.is_fragment:
            header = replace(header, identification=self._identifications.next())
        l4 = self._payload(packet, new)
        protocol = translate.other_protocol(packet.protocol)
        header = replace(header, ttl=header.ttl - self.decrement_ttl, protocol=protocol)
        ip = translate.ipv4_header(header, new.source, new.destination, len(l4))
        partial = packet.partial_checksum and not (packet.is_icmp and not packet.is_later_fragment)
        data = bytearray(translate.ethernet_of(packet, Family.IPV4) + ip + l4)
        passage.packet = replace(packet, data=data, partial_checksum=partial)
        self._end(passage, node, Outcome.TRANSMIT, reason)

    # ------------------------------------------------------------------------------------------ kp-icmp-error

    def _icmp_error(self, passage: Passage) -> None:
        packet = passage.packet
        quoted = translate.read_quoted(packet)
        if quoted is None or packet.destination != quoted.ends.source:
            self._end(passage, Node.ICMP_ERROR, Outcome.PASS, Reason.NO_TRANSLATION)
            return
        ends = quoted.ends
        port = ends.source_port or 0
        state = self._vips.match(ends.source, quoted.protocol, port)
        has_ports = quoted.protocol in (Protocol.TCP, Protocol.UDP, Protocol.SCTP)
        flow = None
        if state is None and self._is_marked(packet):
            flow = self._flow_quoted(packet, quoted)
        if state is None and flow is None and has_ports and self._is_node_address(ends.source):
            state = self._vips.match_node_port(packet.family, quoted.protocol, port)
        if state is not None:
            passage.vip = state
            self._error_to_pod(passage, quoted, state)
        elif flow is not None:
            self._error_to_client(passage, quoted, flow)
        elif self._is_marked(packet):
            self._end(passage, Node.ICMP_ERROR, Outcome.PASS, Reason.NO_TRANSLATION)
        else:
            self._end(passage, Node.ICMP_ERROR, Outcome.PASS, Reason.NO_VIP)

    def _refused_error(self, passage: Passage) -> bool:
        packet = passage.packet
        reason = None
        if packet.is_fragment:
            reason = Reason.UNTRANSLATABLE_FRAGMENT
        elif not packet.partial_checksum and not icmp.has_good_checksum(packet):
            reason = Reason.ICMP_BAD_CHECKSUM
        elif packet.ttl <= 1:
            reason = Reason.TTL_EXPIRED
        if reason is not None:
            self._end(passage, Node.ICMP_ERROR, Outcome.DROP, reason)
        return reason is not None

    def _error_to_pod(self, passage: Passage, quoted: Quoted, state: VipState) -> None:
        packet, ends, kind = passage.packet, quoted.ends, state.vip.type
        client_port = ends.destination_port or 0
        is_nat64 = crosses(state.vip) and kind == VipType.IP6_NAT64
        if is_nat64 and quoted.protocol == Protocol.ICMP6:
            client_port = quoted.identifier
        forward = Endpoints(
            ends.destination, client_port, ends.source, ends.source_port or 0, quoted.protocol
        )
        flow = self._flows.find(forward, state, self._now)
        if flow is not None:
            pod, pod_port = flow.pod, flow.pod_port
        elif not is_nat64 and state.ring_for(forward.source) and not self._is_masqueraded(state, forward):
            pod = state.candidate(forward, self._now)
            pod_port = state.pod_port(pod, forward.destination_port, forward.protocol)
        else:
            self._end(passage, Node.ICMP_ERROR, Outcome.PASS, Reason.NO_TRANSLATION)
            return
        passage.pod = pod
        if self._refused_error(passage):
            return
        if state.vip.encap is not Encap.NAT:  # to the pod as everything else, and untranslated
            self._send(passage, direct.NODES[state.vip.encap])
            return
        if not crosses(state.vip):
            quote = icmp.rewritten_quote(packet, quoted, pod.address, pod_port, source=True)
            if flow is not None and flow.is_translated:
                quote = icmp.rewritten_quote(
                    packet, quoted, flow.source, flow.source_port, source=False, quote=quote
                )
            data = icmp.same_family_error(packet, quote, packet.source, pod.address, self.decrement_ttl)
            self._error_done(passage, data)
            return
        is_icmp = quoted.protocol in (Protocol.ICMP, Protocol.ICMP6)
        if kind == VipType.IP4_NAT46:
            client: Address = self.far.mapped(ends.destination)
            outer = Ends(self.far.mapped(packet.source), pod.address)
            port: int | None = None if is_icmp else pod_port
            inner = Ends(pod.address, client, port, ends.destination_port)
        else:
            assert flow is not None
            client, client_port = flow.source, flow.source_port
            outer = Ends(client, pod.address)
            inner = Ends(pod.address, client, client_port if is_icmp else pod_port, client_port)
        self._crossed(passage, quoted, outer, inner)

    def _is_masqueraded(self, state: VipState, forward: Endpoints) -> bool:
        """What the pod saw instead of the client is known to nobody but the flow's node."""
        pod = state.candidate(forward, self._now)
        is_nat = state.vip.encap is Encap.NAT
        return is_nat and not crosses(state.vip) and state.must_masquerade(pod, forward.source)

    def _flow_quoted(self, packet: Packet, quoted: Quoted) -> Flow | None:
        """The flow of which the embedded packet is what we sent to a pod."""
        ends = quoted.ends
        port = ends.source_port or 0
        if packet.family == Family.IPV4 and self._in_pool(ends.source) and quoted.protocol == Protocol.ICMP:
            port = quoted.identifier
        reply = Endpoints(ends.destination, ends.destination_port or 0, ends.source, port, quoted.protocol)
        return self._flow_of_reply(reply)

    def _error_to_client(self, passage: Passage, quoted: Quoted, flow: Flow) -> None:
        packet = passage.packet
        passage.vip, passage.pod = flow.vip, flow.pod
        if self._refused_error(passage):
            return
        addressed, from_pod = flow.forward, packet.source == flow.pod.address
        if not crosses(flow.vip.vip):
            quote = icmp.rewritten_quote(
                packet, quoted, addressed.destination, addressed.destination_port, source=False
            )
            origin = addressed.destination if from_pod else packet.source
            if flow.is_translated:
                quote = icmp.rewritten_quote(
                    packet, quoted, addressed.source, addressed.source_port, source=True, quote=quote
                )
            data = icmp.same_family_error(packet, quote, origin, addressed.source, self.decrement_ttl)
            self._error_done(passage, data)
            return
        is_icmp = quoted.protocol in (Protocol.ICMP, Protocol.ICMP6)
        source_port: int | None = addressed.source_port
        if packet.family == Family.IPV6:
            router: Address | None = None if from_pod else self.far.unmapped(packet.source)
            if router is None and not from_pod:
                router = self.own_addresses.get(Family.IPV4)
            source_port = None if is_icmp else source_port
        else:
            router = None if from_pod else self.far.mapped(packet.source)
        outer = Ends(router or addressed.destination, addressed.source)
        inner = Ends(addressed.source, addressed.destination, source_port, addressed.destination_port)
        self._crossed(passage, quoted, outer, inner)

    def _in_pool(self, address: Address) -> bool:
        return self.far.pool is not None and address in self.far.pool

    def _crossed(self, passage: Passage, quoted: Quoted, outer: Ends, inner: Ends) -> None:
        told = translate.counterpart(passage.packet, self.translation_mtu)
        if told is None:
            self._end(passage, Node.ICMP_ERROR, Outcome.DROP, Reason.UNTRANSLATABLE_ICMP)
            return
        crosses = (Protocol.TCP, Protocol.UDP, Protocol.SCTP, Protocol.ICMP, Protocol.ICMP6)
        if quoted.protocol not in crosses:
            self._end(passage, Node.ICMP_ERROR, Outcome.DROP, Reason.UNTRANSLATABLE_PROTOCOL)
            return
        identification = self._identifications.next() if outer.source.version == 4 else 0
        data = icmp.crossed_error(
            passage.packet,
            quoted,
            told,
            outer,
            inner,
            decrement=self.decrement_ttl,
            identification=identification,
        )
        self._error_done(passage, data)

    def _error_done(self, passage: Passage, data: bytes) -> None:
        passage.packet = replace(passage.packet, data=bytearray(data), partial_checksum=False)
        self._end(passage, Node.ICMP_ERROR, Outcome.TRANSMIT, Reason.ICMP_ERROR_TRANSLATED)
