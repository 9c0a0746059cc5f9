"""Flow state, policy and masquerade where they meet translation between the families and ICMP errors."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from kuproxy.codes import FlowState, Node, Outcome, Reason, VipCounter
from kuproxy.errors import ConfigError
from kuproxy.model.config import DEFAULT_TIMEOUTS_S, Settings
from kuproxy.reference import RefPacket
from packets import ACK, RST, SYN, frame, ip_packet, reply_to, tcp, udp, verify_checksums
from reference.test_translation import addresses, complain, l4_of
from reference.worlds import key, send, verdict, vip, world

INSIDE = 1
CLIENT = {4: "40.0.0.1", 6: "4000::1"}
ADDRESS = {4: "90.0.0.1", 6: "9000::1"}
PODS = {4: ["10.0.0.1", "10.0.0.2"], 6: ["2001::2", "2001::3"]}  # of each family
NODE = {4: "10.1.0.1", 6: "2001:db8::1"}
TOO_BIG = {4: (3, 4, 1400), 6: (2, 0, 1400)}


def crossing(version, many=2, **how):
    policy = {name: how.pop(name) for name in list(how) if name in POLICY}
    one = vip(ADDRESS[version], PODS[10 - version][:many], kind="nat46" if version == 4 else "nat64", **policy)
    reference = world(one, inside=INSIDE, **how)
    for state, seconds in DEFAULT_TIMEOUTS_S.items():
        reference.set_timeout(round(seconds * 10), state)
    return reference


POLICY = ("affinity_s", "session_cap", "source_ranges", "masquerade", "reset")


@pytest.mark.parametrize("version", [4, 6])
def test_states_across_the_families_rfc6146_section_4(version):
    reference = crossing(version)

    def state():
        [flow] = reference.live_flows(0)
        return flow.state

    def client(flags):
        return send(reference, frame(tcp(CLIENT[version], ADDRESS[version], 5000, 80, flags=flags)))

    there = client(SYN)
    assert state() == FlowState.TCP_HALF_OPEN
    assert send(reference, reply_to(there.data), interface=INSIDE).reason == Reason.IN2OUT
    client(ACK)
    assert state() == FlowState.TCP_ESTABLISHED
    client(RST)
    assert state() == FlowState.TCP_CLOSING
    client(SYN)
    assert reference.counters[Node.BALANCE, Reason.CHOSEN_AFRESH] == 1
    assert state() == FlowState.TCP_HALF_OPEN


@pytest.mark.parametrize("version", [4, 6])
def test_half_open_flows_across_the_families_give_way(version):
    reference = crossing(version, buckets=1)
    for port in range(1, 6):
        data = frame(tcp(CLIENT[version], ADDRESS[version], port, 80, flags=SYN))
        assert verdict(reference, data)[0] == Outcome.TRANSMIT
    assert len(reference.live_flows(0)) == 2
    assert reference.vip_counters[key(ADDRESS[version])][VipCounter.EVICTED] == 3


@pytest.mark.parametrize("version", [4, 6])
def test_a_flow_that_gives_way_within_its_vector_keeps_its_source(version):
    """What kp-balance chose for a packet holds, though a later packet of the vector takes the flow's place."""
    reference = crossing(version, buckets=1)
    data = [frame(tcp(CLIENT[version], ADDRESS[version], port, 80, flags=SYN)) for port in range(1025, 1028)]
    results = reference.receive([RefPacket(each) for each in data], 0)
    sources = {(addresses(result.data)[0], l4_of(result.data)[:2]) for result in results}
    assert len(sources) == 3


@pytest.mark.parametrize("version", [4, 6])
def test_affinity_across_the_families(version):
    reference = crossing(version, affinity_s=10.0)
    pods = set()
    for port in range(1, 9):
        result = send(reference, frame(udp(CLIENT[version], ADDRESS[version], port, 80)))
        pods.add(result.pod)
    assert len(pods) == 1
    assert reference.counters[Node.BALANCE, Reason.AFFINITY] == 7


@pytest.mark.parametrize("version", [4, 6])
def test_session_cap_and_ranges_across_the_families(version):
    reference = crossing(version, session_cap=1)
    assert verdict(reference, frame(udp(CLIENT[version], ADDRESS[version], 1, 80)))[0] == Outcome.TRANSMIT
    data = frame(udp(CLIENT[version], ADDRESS[version], 2, 80))
    assert verdict(reference, data) == (Outcome.DROP, Reason.SESSION_CAP)


@pytest.mark.parametrize("version", [4, 6])
def test_masquerade_changes_nothing_across_the_families(version):
    data = frame(udp(CLIENT[version], ADDRESS[version], 1, 80))
    plain, masqueraded = crossing(version), crossing(version, masquerade=True)
    assert send(plain, data).data == send(masqueraded, data).data


def masquerading(version):
    one = vip(ADDRESS[version], PODS[version], port=80, target_port=8080, masquerade=True)
    return world(one, inside=INSIDE, masquerade=tuple(map(ip_address, NODE.values())))


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("build", [tcp, udp])
def test_an_error_about_a_masqueraded_packet_reaches_the_client(version, build):
    """RFC 5508 REQ-4, REQ-5: the embedded packet is as the client wrote it; the receiver is the client."""
    reference = masquerading(version)
    router = {4: "50.0.0.1", 6: "5000::1"}[version]
    sent = build(CLIENT[version], ADDRESS[version], 80, 80)
    there = send(reference, frame(sent))
    assert addresses(there.data)[0] == ip_address(NODE[version])
    result = complain(reference, there.data, *TOO_BIG[version], router=router)
    assert result[:2] == (Outcome.TRANSMIT, Reason.ICMP_ERROR_TRANSLATED)
    assert addresses(result.data) == (ip_address(router), ip_address(CLIENT[version]))
    assert l4_of(result.data)[8:] == ip_packet(sent, ttl=63)
    assert verify_checksums(result.data) == []


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("known", [True, False])
def test_an_error_about_a_reply_names_what_the_masqueraded_pod_saw(version, known):
    reference = masquerading(version)
    there = send(reference, frame(udp(CLIENT[version], ADDRESS[version], 80, 80)))
    if not known:
        reference = masquerading(version)
    reply = udp(ADDRESS[version], CLIENT[version], 80, 80, b"reply")
    result = complain(reference, frame(reply), *TOO_BIG[version], router={4: "50.0.0.1", 6: "5000::1"}[version])
    if not known:
        assert result[:2] == (Outcome.PASS, Reason.NO_TRANSLATION)
        return
    seen, pod = addresses(there.data)
    port = int.from_bytes(l4_of(there.data)[:2], "big")
    assert addresses(result.data)[1] == pod
    assert l4_of(result.data)[8:] == ip_packet(udp(pod, seen, 8080, port, b"reply"))
    assert verify_checksums(result.data) == []


@pytest.mark.parametrize("address", ["192.0.0.1", "64:ff9b:1::1"])
def test_the_masquerade_address_is_not_of_the_translation(address):
    with pytest.raises(ConfigError, match="translation"):
        Settings(masquerade=(ip_address(address),))
