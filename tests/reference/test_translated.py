"""Masquerade, hairpin and source ports: docs/forwarding.md, "kp-masquerade" and "Source ports"."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from kuproxy.codes import Node, Outcome, Reason
from kuproxy.reference import ports
from packets import echo, fragments, frame, reply_to, sctp, tcp, udp, verify_checksums
from reference.worlds import send, verdict, vip, world

INSIDE = 1
NODE = {4: "10.1.0.1", 6: "2001:db8::1"}
CLIENT = {4: "40.0.0.1", 6: "4000::1"}
ADDRESS = {4: "90.0.0.1", 6: "9000::1"}
POD = {4: "10.0.0.1", 6: "2001::2"}


def make(version=4, buckets=1024, addresses=True, **policy):
    one = vip(ADDRESS[version], [POD[version]], port=80, target_port=8080, **policy)
    masquerade = tuple(ip_address(address) for address in NODE.values()) if addresses else ()
    return world(one, inside=INSIDE, buckets=buckets, masquerade=masquerade)


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("build", [tcp, udp, sctp])
def test_there_and_back(version, build):
    reference = make(version, masquerade=True)
    request = build(CLIENT[version], ADDRESS[version], 5000, 80)
    result = send(reference, frame(request))
    assert result.data == frame(build(NODE[version], POD[version], 5000, 8080), ttl=63)
    back = send(reference, reply_to(result.data), interface=INSIDE)
    assert back[:2] == (Outcome.TRANSMIT, Reason.IN2OUT)
    assert verify_checksums(back.data) == []
    addresses_at = 26 if version == 4 else 22
    assert back.data[addresses_at:] == reply_to(frame(request))[addresses_at:]


def test_two_clients_with_one_port():
    reference = make(masquerade=True)
    for last in (1, 2, 3):
        result = send(reference, frame(udp(f"40.0.0.{last}", "90.0.0.1", 5000, 80)))
        assert verify_checksums(result.data) == []
    seen = {flow.source_port for flow in reference.live_flows(0)}
    assert len(seen) == 3
    assert 5000 in seen


def test_system_ports_are_not_given():
    reference = make(masquerade=True)
    send(reference, frame(udp("40.0.0.1", "90.0.0.1", 80, 80)))
    assert reference.live_flows(0)[0].source_port >= 1024


def test_hairpin():
    """The client is the chosen pod: without masquerade its reply would never come here."""
    reference = make()
    result = send(reference, frame(tcp("10.0.0.1", "90.0.0.1", 5000, 80)), interface=INSIDE)
    assert result.data == frame(tcp("10.1.0.1", "10.0.0.1", 5000, 8080), ttl=63)
    back = send(reference, reply_to(result.data), interface=INSIDE)
    assert back.data[26:38] == frame(tcp("90.0.0.1", "10.0.0.1", 80, 5000))[26:38]


def test_plain_clients_keep_their_source():
    reference = make()
    result = send(reference, frame(tcp("40.0.0.1", "90.0.0.1", 5000, 80)))
    assert result.data == frame(tcp("40.0.0.1", "10.0.0.1", 5000, 8080), ttl=63)


def test_without_an_address():
    reference = make(addresses=False, masquerade=True)
    data = frame(tcp("40.0.0.1", "90.0.0.1", 5000, 80))
    assert verdict(reference, data) == (Outcome.DROP, Reason.NO_MASQUERADE_ADDRESS)


def test_without_room():
    reference = make(buckets=1, masquerade=True)
    for port in range(5000, 5004):
        send(reference, frame(udp("40.0.0.1", "90.0.0.1", port, 80)))
    data = frame(udp("40.0.0.1", "90.0.0.1", 6000, 80))
    assert verdict(reference, data) == (Outcome.DROP, Reason.FLOW_TABLE_FULL)


def test_exhausted(monkeypatch):
    """Counted and refused; a live port is never given again."""
    monkeypatch.setattr(ports.candidates, "__defaults__", (2000, 7))
    reference = make(masquerade=True)
    results = [send(reference, frame(udp(f"40.0.0.{last}", "90.0.0.1", 9, 80))) for last in range(1, 10)]
    assert [result.reason for result in results] == [Reason.FORWARDED] * 7 + [Reason.MASQUERADE_EXHAUSTED] * 2
    assert sorted(flow.source_port for flow in reference.live_flows(0)) == list(range(2000, 2007))
    assert send(reference, frame(udp("40.0.0.9", "90.0.0.1", 9, 80)), 400).reason == Reason.FORWARDED


def test_the_walk_visits_every_port():
    for seed in (0, 1, 932283424, 2**32 - 1):
        walk = list(ports.candidates(0, seed, 5000, 101))
        assert sorted(walk) == list(range(5000, 5101))


def test_fragments():
    reference = make(masquerade=True)
    first, later = fragments(udp("40.0.0.1", "90.0.0.1", 5000, 80, bytes(100)), 56)
    for piece in (first, later):
        result = send(reference, piece)
        assert result.data[26:34] == ip_address("10.1.0.1").packed + ip_address("10.0.0.1").packed
    assert reference.counters[Node.MASQUERADE, Reason.MASQUERADED] == 2


def test_sctp_fragments_cannot_change_ports():
    reference = make(masquerade=True)
    [first, *_] = fragments(sctp("40.0.0.1", "90.0.0.1", 80, 80, bytes(100)), 56)
    assert verdict(reference, first) == (Outcome.DROP, Reason.SCTP_FRAGMENT)


def test_protocols_without_ports_have_one_client_at_a_time():
    one = vip("90.0.0.1", ["10.0.0.1"], masquerade=True)
    reference = world(one, masquerade=(ip_address("10.1.0.1"),))
    assert verdict(reference, frame(echo("40.0.0.1", "90.0.0.1")))[1] == Reason.FORWARDED
    assert verdict(reference, frame(echo("40.0.0.2", "90.0.0.1")))[1] == Reason.MASQUERADE_EXHAUSTED


def test_a_port_that_is_also_a_node_port():
    one = vip("90.0.0.1", ["10.0.0.1"], port=80, node_port=5000, masquerade=True)
    reference = world(one, inside=INSIDE, masquerade=(ip_address("10.1.0.1"),))
    result = send(reference, frame(tcp("40.0.0.1", "90.0.0.1", 5000, 80)))
    back = send(reference, reply_to(result.data), interface=INSIDE)
    assert back.reason == Reason.IN2OUT
    assert send(reference, frame(tcp("40.0.0.2", "10.1.0.1", 7, 5000))).reason == Reason.FORWARDED
