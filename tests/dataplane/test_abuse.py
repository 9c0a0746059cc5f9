"""What must not work, and what it must not cost: each abuse of docs/floods.md against the compiled graph."""

from __future__ import annotations

import random
from collections.abc import Iterator
from ipaddress import ip_address, ip_network

import pytest

from differential.plane import CompiledPlane
from differential.strategies import Config
from kuproxy.codes import FlowState, Node, Outcome, Reason
from kuproxy.dataplane.layout import BATCH, FRAGMENT_SLOTS, HOLD_SLOTS, TICKS_PER_SECOND, W_RECEIVED
from kuproxy.model.config import DEFAULT_TIMEOUTS_S
from kuproxy.reference import RefPacket, Result
from packets import ACK, RST, SYN, echo, fragments, frame, icmp, ip_packet, reply_to, tcp, udp
from reference.worlds import vip

OUTSIDE, INSIDE = 0, 1
CLIENT, ADDRESS, POD = "40.0.0.1", "90.0.0.1", "10.0.0.1"
CLIENT6, ADDRESS6, POD6 = "4000::1", "9000::1", "2001::2"
NOW = 1000
# By family: the client, its VIP and the pod.
ENDS = {4: (CLIENT, ADDRESS, POD), 6: (CLIENT6, ADDRESS6, POD6)}


@pytest.fixture
def plane() -> Iterator[CompiledPlane]:
    made = CompiledPlane(Config(buckets=1024, any_node_address=False))
    made.set_vip(vip(ADDRESS, [POD], port=80, target_port=8080))
    made.set_vip(vip(ADDRESS6, [POD6], port=80, target_port=8080))
    made.mark_interface(INSIDE, True, True)
    yield made
    made.close()


def send(plane: CompiledPlane, *frames: bytes, interface: int = OUTSIDE, now: int = NOW) -> list[Result]:
    """In as many vectors as it takes."""
    results: list[Result] = []
    for first in range(0, len(frames), BATCH):
        results += plane.receive([RefPacket(each, interface) for each in frames[first : first + BATCH]], now)
    return results


def established(plane: CompiledPlane, family: int = 4, port: int = 7000) -> bytes:
    """A connection; returns the pod's segment as it would come in."""
    client, address, _ = ENDS[family]
    [syn] = send(plane, frame(tcp(client, address, port, 80, flags=SYN)))
    send(plane, reply_to(syn.data), interface=INSIDE)
    [ack] = send(plane, frame(tcp(client, address, port, 80, flags=ACK)))
    assert plane.live_flows(NOW)[-1].state == FlowState.TCP_ESTABLISHED
    return reply_to(ack.data)


def passes(plane: CompiledPlane, port: int = 7000, now: int = NOW) -> bool:
    """Is the connection forwarded to its pod?"""
    [result] = send(plane, frame(tcp(CLIENT, ADDRESS, port, 80, flags=ACK)), now=now)
    return result.outcome is Outcome.TRANSMIT and result.pod == ip_address(POD)


def accounted(plane: CompiledPlane) -> bool:
    """Has every packet exactly one outcome?"""
    received = sum(int(state.header[W_RECEIVED]) for state in plane.engine.states)
    return sum(plane.outcomes().values()) == received


# ------------------------------------------------------------------------------------------- spoofed pods


@pytest.mark.parametrize("family", [4, 6])
def test_a_pods_address_does_not_open_the_return_path(plane, family):
    """What would be a pod's reply, but comes from the clients' side: nothing is restored, no flow hears of it."""
    client, _, pod = ENDS[family]
    genuine = established(plane, family)
    before = plane.live_flows(NOW)
    forged = [
        genuine,
        frame(tcp(pod, client, 8080, 7000, flags=RST)),
        *fragments(tcp(pod, client, 8080, 7000, bytes(2000)), 1000, identification=7),
    ]
    for result, sent in zip(send(plane, *forged, now=NOW + 5), forged, strict=True):
        assert (result.outcome, result.reason) == (Outcome.PASS, Reason.NO_VIP)
        assert result.data == sent
    assert plane.live_flows(NOW) == before, "neither its state nor its end has changed"
    in2out = Node.NAT4_IN2OUT if family == 4 else Node.NAT6_IN2OUT
    counted = plane.counters().get((in2out, Reason.IN2OUT), 0)
    [result] = send(plane, genuine, interface=INSIDE, now=NOW + 6)
    assert result.outcome is Outcome.TRANSMIT and result.data != genuine
    assert plane.counters()[in2out, Reason.IN2OUT] == counted + 1


def test_a_forged_error_of_a_pod_reaches_no_client(plane):
    """ICMP about what the client sent, as if from the pod or a router behind it, but from the clients' side."""
    established(plane)
    about = ip_packet(tcp(CLIENT, POD, 7000, 8080))
    for source in (POD, "10.9.9.9"):
        sent = frame(icmp(source, CLIENT, 3, 4, bytes(4) + about))
        [result] = send(plane, sent)
        assert (result.outcome, result.reason, result.data) == (Outcome.PASS, Reason.NO_VIP, sent)
        [inside] = send(plane, sent, interface=INSIDE)
        assert inside.outcome is Outcome.TRANSMIT


def test_a_pods_address_is_some_client_to_a_vip(plane):
    """A VIP asked in a pod's name from outside begins a flow like any other, and changes none."""
    established(plane)
    before = set(plane.live_flows(NOW))
    [result] = send(plane, frame(tcp("10.0.0.9", ADDRESS, 8080, 80, flags=SYN)))
    assert result.outcome is Outcome.TRANSMIT
    assert before < set(plane.live_flows(NOW))
    assert passes(plane)


# --------------------------------------------------------------------------------------------- denied sources


NODE = "40.0.0.254"


def node_port_plane(**more: object) -> CompiledPlane:
    made = CompiledPlane(
        Config(
            buckets=1024, any_node_address=False, node_addresses=(ip_address(NODE),),
            pod_ranges=(ip_network("10.0.0.0/8"),), all_node_addresses=(ip_address(NODE), ip_address("40.0.1.254")),
        )
    )  # fmt: skip
    made.set_vip(vip(ADDRESS, [POD], protocol="tcp", port=80, target_port=8080, node_port=30080, **more))
    return made


def test_clients_that_a_service_does_not_serve_are_refused_at_its_node_port():
    """externalTrafficPolicy Local without a pod here: clients from outside are dropped and counted, pods are served."""
    plane = node_port_plane(outside_pods=())
    denied = [frame(tcp(CLIENT, NODE, port, 30080, flags=SYN)) for port in range(7000, 8000)]
    assert {result[:2] for result in send(plane, *denied)} == {(Outcome.DROP, Reason.NO_POD)}
    assert plane.counters()[Node.BALANCE, Reason.NO_POD] == 1000
    assert plane.live_flows(NOW) == []
    [result] = send(plane, frame(tcp("10.0.0.9", NODE, 7000, 30080, flags=SYN)))
    assert result.outcome is Outcome.TRANSMIT
    assert accounted(plane)
    plane.close()


def test_clients_outside_the_source_ranges_are_refused_also_in_the_midst_of_a_flow():
    """At the address: as with kube-proxy, node ports know no source ranges. Every packet is looked at."""
    plane = node_port_plane()
    [first] = send(plane, frame(tcp("41.0.0.1", ADDRESS, 7000, 80, flags=SYN)))
    assert first.outcome is Outcome.TRANSMIT
    ranges = (ip_network("40.0.0.0/8"),)
    plane.set_vip(
        vip(
            ADDRESS, [POD], protocol="tcp", port=80, target_port=8080, node_port=30080, source_ranges=ranges
        )
    )  # fmt: skip
    denied = [frame(tcp("41.0.0.1", ADDRESS, port, 80, flags=SYN)) for port in range(7000, 7500)]
    denied.append(frame(tcp("41.0.0.1", ADDRESS, 7000, 80, flags=ACK)))
    assert {result[:2] for result in send(plane, *denied)} == {(Outcome.DROP, Reason.SOURCE_RANGE)}
    assert plane.counters()[Node.BALANCE, Reason.SOURCE_RANGE] == 501
    assert len(plane.live_flows(NOW)) == 1
    [result] = send(plane, frame(tcp("41.0.0.1", NODE, 7000, 30080, flags=SYN)))
    assert result.outcome is Outcome.TRANSMIT
    plane.close()


def test_node_ports_at_other_addresses_of_the_node_are_not_ours():
    """nodePortAddresses: what is sent to another address is left to the node's own stack, and counted."""
    plane = node_port_plane()
    sent = frame(tcp(CLIENT, "40.0.1.254", 7000, 30080, flags=SYN))
    [result] = send(plane, sent)
    assert (result.outcome, result.reason, result.data) == (Outcome.PASS, Reason.NO_VIP, sent)
    assert plane.counters()[Node.LOOKUP, Reason.NO_VIP] == 1
    plane.close()


# ------------------------------------------------------------------------------------------------ tiny TTLs


@pytest.mark.parametrize("ttl", [0, 1])
def test_tiny_ttls_begin_nothing_and_are_answered_in_measure(plane, ttl):
    """1,000 answers a second, the rest is counted; no flow begins, and none lives longer for it."""
    established(plane)
    before = plane.live_flows(NOW)
    expired = [frame(udp(CLIENT, ADDRESS, port, 80), ttl=ttl) for port in range(1000, 5000)]
    expired.append(frame(tcp(CLIENT, ADDRESS, 7000, 80, flags=ACK), ttl=ttl))
    results = send(plane, *expired, now=NOW + 5)
    assert plane.live_flows(NOW) == before
    answered = sum(result.outcome is Outcome.TRANSMIT for result in results)
    assert answered == plane.counters()[Node.ICMP, Reason.TIME_EXCEEDED_SENT] <= 1000
    assert plane.counters()[Node.ICMP, Reason.ERROR_RATE_LIMITED] == len(expired) - answered
    assert plane.counters()[Node.BALANCE, Reason.TTL_EXPIRED] == len(expired)
    assert passes(plane) and accounted(plane)


# ------------------------------------------------------------------------------------------------ fragments


def later(number: int) -> bytes:
    return fragments(udp(CLIENT, ADDRESS, 7000, 80, bytes(100)), 56, identification=number)[1]


def test_fragments_without_a_first_one_wait_in_bounded_memory(plane):
    """64 wait, the others are dropped; after five seconds none is left, and every one has its outcome."""
    established(plane)
    results = send(plane, *(later(number) for number in range(2000)))
    reasons = [result.reason for result in results]
    assert reasons.count(Reason.FRAGMENT_HELD) == HOLD_SLOTS
    assert reasons.count(Reason.FRAGMENT_HOLD_FULL) == 2000 - HOLD_SLOTS
    assert passes(plane) and accounted(plane)
    plane.sweep(NOW + 5 * TICKS_PER_SECOND)
    assert plane.outcomes()[Outcome.HELD] == 0 and accounted(plane)
    assert plane.counters()[Node.FRAGMENT, Reason.FRAGMENT_TIMEOUT] == HOLD_SLOTS


def test_first_fragments_without_later_ones_overwrite_the_oldest(plane):
    """10,000 datagrams are never finished: 1,024 places remember the last ones, and new ones come through."""
    firsts = (
        fragments(udp(f"40.1.{n >> 8}.{n & 255}", ADDRESS, 7000, 80, bytes(100)), 56, identification=n)[0]
        for n in range(10_000)
    )
    send(plane, *firsts)
    assert sum(int((state.fragments["used"] != 0).sum()) for state in plane.engine.states) <= FRAGMENT_SLOTS
    whole = fragments(udp(CLIENT, ADDRESS, 7000, 80, bytes(100)), 56, identification=77)
    results = send(plane, *whole)
    assert [result.outcome for result in results] == [Outcome.TRANSMIT] * len(whole)
    assert len({result.pod for result in results}) == 1
    assert accounted(plane)


# ----------------------------------------------------------------------------------------------------- ICMP


def test_an_icmp_flood_touches_no_flow(plane):
    """Echoes to the VIP are answered one for one, errors about nothing are left alone, and no connection notices."""
    established(plane)
    before = plane.live_flows(NOW)
    quoted = [ip_packet(tcp(ADDRESS, "40.2.0.1", 80, port, flags=ACK)) for port in range(1000)]
    flood = [frame(echo(f"40.3.0.{n % 250}", ADDRESS)) for n in range(1000)]
    flood += [frame(icmp("40.2.0.9", ADDRESS, 3, 1, bytes(4) + each)) for each in quoted]
    flood += [frame(icmp("40.2.0.9", ADDRESS, 5, 1, bytes(4) + quoted[0]))] * 500  # redirects
    results = send(plane, *flood, now=NOW + 5)
    assert plane.live_flows(NOW) == before
    assert {result[:2] for result in results[:1000]} == {(Outcome.TRANSMIT, Reason.ECHO_ANSWERED)}
    assert all(len(result.data) <= len(sent) for result, sent in zip(results, flood, strict=True))
    assert passes(plane) and accounted(plane)


# ------------------------------------------------------------------------------------------------ new flows


def test_random_datagrams_evict_no_established_flow(plane):
    """20,000 of them at a table of 4,096 places: it is full, what finds no place is served all the same."""
    ports = range(7000, 7100)
    for port in ports:
        established(plane, port=port)
    before = [flow for flow in plane.live_flows(NOW) if flow.state == FlowState.TCP_ESTABLISHED]
    rng = random.Random(3)
    flood = [
        frame(udp(str(ip_address(rng.randrange(41 << 24, 60 << 24))), ADDRESS, rng.randrange(1, 65536), 80))
        for _ in range(20_000)
    ]
    results = send(plane, *flood, now=NOW + 1)
    assert {result.outcome for result in results} == {Outcome.TRANSMIT}
    assert {flow for flow in plane.live_flows(NOW) if flow.state == FlowState.TCP_ESTABLISHED} == set(before)
    assert len(plane.live_flows(NOW)) <= 4096
    assert plane.counters()[Node.BALANCE, Reason.UNTRACKED] > 15_000
    assert all(passes(plane, port, NOW + 1) for port in ports)



def test_half_open_connections_end_long_before_established_ones(plane):
    """A SYN that nobody goes on with holds its place for 30 s, an established connection for two hours."""
    for state, seconds in DEFAULT_TIMEOUTS_S.items():
        plane.set_timeout(round(seconds * TICKS_PER_SECOND), state)
    established(plane)
    send(plane, *(frame(tcp("40.5.0.1", ADDRESS, port, 80, flags=SYN)) for port in range(1000, 1100)))
    assert len(plane.live_flows(NOW + 29 * TICKS_PER_SECOND)) > 90
    assert [flow.state for flow in plane.live_flows(NOW + 31 * TICKS_PER_SECOND)] == [FlowState.TCP_ESTABLISHED]
    assert len(plane.live_flows(NOW + 7000 * TICKS_PER_SECOND)) == 1
