"""The machine that judges the compiled graph, judged itself: it reaches every rule, and it sees small mistakes."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from differential.machine import ReferencePlane, machine_for
from differential.strategies import Config
from kuproxy.codes import Node, Origin, Outcome, Reason
from kuproxy.reference import FlowTable, Reference, RefPacket, Result
from kuproxy.reference.forwarding import Passage
from kuproxy.reference.fragments import Fragments

QUICK = settings(
    max_examples=1100,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
)

# Every end and every event, where it is counted.
REACHABLE = {
    Node.INPUT: [
        Reason.TRUNCATED_ETHERNET, Reason.TRUNCATED_IPV4, Reason.TRUNCATED_IPV6, Reason.BAD_VERSION,
        Reason.BAD_HEADER_LENGTH, Reason.BAD_TOTAL_LENGTH, Reason.BAD_IPV4_CHECKSUM, Reason.TRUNCATED_L4,
        Reason.BAD_L4_LENGTH, Reason.NOT_IP,
    ],
    Node.FRAGMENT: [
        Reason.FIRST_FRAGMENT, Reason.LATER_FRAGMENT, Reason.FRAGMENT_RELEASED, Reason.FRAGMENT_HELD,
        Reason.FRAGMENT_HOLD_FULL, Reason.FRAGMENT_TOO_LONG, Reason.FRAGMENT_TIMEOUT, Reason.NO_VIP,
    ],
    Node.LOOKUP: [
        Reason.VIP_MATCHED, Reason.NO_VIP, Reason.UNSUPPORTED_PROTOCOL,
    ],
    Node.NODEPORT4: [Reason.VIP_MATCHED],
    Node.NODEPORT6: [Reason.VIP_MATCHED],
    Node.BALANCE: [
        Reason.FIRST_PACKET, Reason.EXISTING_SESSION, Reason.UNTRACKED, Reason.CLASH_AVOIDED, Reason.FLOW_CLASH,
        Reason.HALF_OPEN_EVICTED, Reason.CHOSEN_AFRESH, Reason.PORT_TRANSLATED, Reason.AFFINITY,
        Reason.NO_MASQUERADE_ADDRESS, Reason.FLOW_TABLE_FULL, Reason.SOURCE_RANGE,
        Reason.NO_POD, Reason.TTL_EXPIRED, Reason.PORTS_EXHAUSTED,
        Reason.UNTRANSLATABLE_PROTOCOL, Reason.UNTRANSLATABLE_ICMP, Reason.UNTRANSLATABLE_FRAGMENT,
        Reason.ZERO_CHECKSUM_FRAGMENT,
    ],
    Node.NAT46: [Reason.FORWARDED, Reason.FRAGMENTED],
    Node.NAT64: [Reason.FORWARDED, Reason.SCTP_FRAGMENT],
    Node.NAT46_IN2OUT: [Reason.IN2OUT, Reason.TTL_EXPIRED],
    Node.NAT64_IN2OUT: [Reason.IN2OUT, Reason.TTL_EXPIRED],
    Node.ICMP_ERROR: [
        Reason.ICMP_ERROR_TRANSLATED, Reason.ICMP_BAD_CHECKSUM, Reason.NO_TRANSLATION, Reason.TTL_EXPIRED,
        Reason.UNTRANSLATABLE_ICMP, Reason.NO_VIP,
    ],
    Node.ICMP: [
        Reason.TIME_EXCEEDED_SENT, Reason.ERROR_SUPPRESSED, Reason.ERROR_RATE_LIMITED, Reason.ECHO_ANSWERED,
        Reason.SOURCE_ROUTE_SENT, Reason.PARAMETER_PROBLEM_SENT, Reason.PACKET_TOO_BIG_SENT,
    ],
    Node.MASQUERADE: [Reason.MASQUERADED],
    Node.NAT44: [Reason.FORWARDED, Reason.SCTP_FRAGMENT],
    Node.NAT66: [Reason.FORWARDED, Reason.SCTP_FRAGMENT],
    Node.NAT4_IN2OUT: [Reason.IN2OUT, Reason.IN2OUT_UNTRACKED, Reason.NO_TRANSLATION, Reason.TTL_EXPIRED],
    Node.NAT6_IN2OUT: [Reason.IN2OUT, Reason.IN2OUT_UNTRACKED, Reason.NO_TRANSLATION, Reason.TTL_EXPIRED],
    Node.GRE: [Reason.ENCAPSULATED, Reason.TUNNEL_NO_SOURCE, Reason.TUNNEL_GSO],
    Node.IPIP: [Reason.ENCAPSULATED],
    Node.GUE: [Reason.ENCAPSULATED],
    Node.L3DSR: [Reason.FORWARDED],
    Node.REJECT: [Reason.REJECT_SENT, Reason.REJECT_SUPPRESSED, Reason.REJECT_RATE_LIMITED],
}  # fmt: skip


@pytest.mark.long
@pytest.mark.timeout(900)  # 1,100 runs, each of many packets
def test_reference_agrees_with_itself_and_every_rule_is_reached():
    reached: Counter[tuple[Node, Reason]] = Counter()

    class Counting(ReferencePlane):
        def counters(self):
            reached.update(super().counters())
            return super().counters()

    run_state_machine_as_test(machine_for(Counting), settings=settings(QUICK, max_examples=1100))
    missing = [
        f"{node.name} {reason.name}"
        for node, reasons in REACHABLE.items()
        for reason in reasons
        if not reached[node, reason]
    ]
    assert missing == []


class WrongTtl(Reference):
    """Lowers the TTL of replies twice."""

    def _transmit(self, passage: Passage, node: Node, reason: Reason) -> None:
        packet = passage.packet
        if reason == Reason.IN2OUT and packet.family == 6:
            packet.data[packet.l3 + 7] -= 1
        super()._transmit(passage, node, reason)


class ForgottenChecksum(Reference):
    """Leaves UDP's checksum as it was, in one direction."""

    def _nat(self, passage: Passage, node: Node) -> None:
        packet = passage.packet
        before = packet.data[packet.l4 + 6 : packet.l4 + 8]
        is_udp = packet.protocol == 17 and not packet.is_later_fragment
        if is_udp and before != b"\0\0":
            packet.protocol = 47
            passage.pod_port, port = 0, passage.pod_port
            packet.data[packet.l4 + 2 : packet.l4 + 4] = port.to_bytes(2, "big")
        super()._nat(passage, node)


class LateExpiry(Reference):
    """Lives a tick too long."""

    def _after(self, ticks: int) -> int:
        return super()._after(ticks + 1)


class NotWrapSafe(Reference):
    """Compares times as plain numbers."""

    def _after(self, ticks: int) -> int:
        return min(super()._after(0) + ticks, 2**32 - 1)


class FifthWay(Reference):
    """Keeps a fifth flow in a bucket."""

    def __post_init__(self) -> None:
        super().__post_init__()

        class Table(FlowTable):
            def bucket_is_full(self, forward, now):
                return len(self._bucket(forward, now)) >= 5

        self._flows = Table(self.buckets)


class OldLife(Reference):
    """Remembers flows of a VIP that was deleted and made again."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._former = {}

    def del_vip(self, key):
        self._former[key] = self._vips.by_key[key]
        super().del_vip(key)

    def set_vip(self, vip):
        if vip.key in self._former and vip.key not in self._vips.by_key:
            state = self._former.pop(vip.key)
            state.deleted = False
            state.counters.clear()
            self._vips.by_key[vip.key] = state
        super().set_vip(vip)


class FragmentsBackwards(Reference):
    """Releases held fragments in the wrong order."""

    def __post_init__(self) -> None:
        super().__post_init__()

        class Backwards(Fragments):
            def take_held_for(self, first):
                return super().take_held_for(first)[::-1]

        self._fragments = Backwards()


class RepliesDoNotRefresh(Reference):
    """Forgets a flow in which only the pod still talks."""

    def _in2out(self, passage: Passage, node: Node) -> None:
        flow = self._flows.find_reply(passage.packet.endpoints, self._now)
        before = flow.expires if flow else 0
        super()._in2out(passage, node)
        if flow:
            flow.expires = before


class OneByOne(Reference):
    """Runs each packet to its end before the next one starts."""

    def receive(self, packets: list[RefPacket], now: int) -> list[Result]:
        own, released = [], []
        for packet in packets:
            result, *others = super().receive([packet], now)
            own.append(result)
            released += others
        return own + released


class ShortestPrefix(Reference):
    """Matches VIPs of every protocol before those of a longer prefix."""

    def _lookup(self, passage: Passage) -> None:
        super()._lookup(passage)
        if passage.vip is not None and passage.vip.key.port == 81:
            passage.vip = (
                self._vips.match(passage.packet.destination, passage.packet.protocol, 0) or passage.vip
            )


class NobodyHasAnOrigin(Reference):
    """Takes everybody for a client from outside."""

    def set_origins(self, pod_ranges, node_addresses):
        super().set_origins((), ())

    def __post_init__(self) -> None:
        self.pod_ranges, self.all_node_addresses = (), ()
        super().__post_init__()


class NodeBeforePods(Reference):
    """Takes the node's address on the pods' bridge for the node."""

    def __post_init__(self) -> None:
        super().__post_init__()
        ask = self._origins.of
        self._origins.of = lambda client: (
            Origin.NODE if client in self._origins.node_addresses else ask(client)
        )


class LostDrop(Reference):
    """Does not count one kind of drop as an outcome."""

    def _end(self, passage: Passage, node: Node, outcome: Outcome, reason: Reason) -> Result:
        result = super()._end(passage, node, outcome, reason)
        if reason == Reason.FLOW_CLASH:
            self.outcomes[outcome] -= 1
        return result


@pytest.mark.parametrize(
    "mutant",
    [
        WrongTtl, ForgottenChecksum, LateExpiry, NotWrapSafe, FifthWay, OldLife, FragmentsBackwards,
        RepliesDoNotRefresh, OneByOne, ShortestPrefix, LostDrop, NobodyHasAnOrigin, NodeBeforePods,
    ],
)  # fmt: skip
def test_mistakes_are_seen(mutant):
    class Plane(ReferencePlane):
        kind = mutant

    def make(config: Config) -> Plane:
        return Plane(config)

    with pytest.raises(AssertionError):
        run_state_machine_as_test(machine_for(make), settings=QUICK)
