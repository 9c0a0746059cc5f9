"""Replies of pods, restored by the reference."""

import pytest

import packets
from kuproxy.codes import Node, Outcome, Reason, VipCounter
from kuproxy.reference import RefPacket
from packets import echo, frame, reply_to, sctp, tcp, udp, verify_checksums
from reference.worlds import key, packet_counts, send, verdict, vip, world

RESTORED = (Outcome.TRANSMIT, Reason.IN2OUT)
UNKNOWN = (Outcome.PASS, Reason.NO_TRANSLATION)
FIVE = [f"10.0.0.{last}" for last in range(1, 6)]
INSIDE = 1


def there_and_back(reference, data, now=0):
    """The pod's answer to what was forwarded, as the client gets it."""
    forwarded = send(reference, data, now)
    assert forwarded.outcome == Outcome.TRANSMIT
    return send(reference, reply_to(forwarded.data), now, interface=INSIDE)


@pytest.mark.parametrize(
    "datagram",
    [
        build(source, destination, *ports)
        for source, destination in (("40.0.0.1", "90.0.0.1"), ("4000::1", "9000::1"))
        for build, ports in ((tcp, (7, 80)), (udp, (7, 80)), (sctp, (7, 80)), (echo, (5, 6)))
    ],
    ids=lambda datagram: f"ip{datagram.version}-{datagram.protocol}",
)
def test_client_gets_what_its_peer_would_have_sent(datagram):
    reference = world(vip("90.0.0.0/8", FIVE), vip("9000::/16", ["2001::2", "2001::3"]), inside=INSIDE)
    result = there_and_back(reference, frame(datagram))
    assert result[:2] == RESTORED
    expected = bytearray(reply_to(frame(datagram)))
    expected[14 + (8 if datagram.version == 4 else 7)] = 63
    if datagram.version == 4:
        expected[24:26] = result.data[24:26]
    assert result.data == expected
    assert verify_checksums(result.data) == []


def test_target_port_and_node_port():
    reference = world(
        vip("90.0.0.1", ["10.0.0.1"], port=80, target_port=8080, node_port=30080), inside=INSIDE
    )
    result = there_and_back(reference, frame(tcp("40.0.0.1", "40.0.0.254", 7, 30080)))
    expected = tcp("40.0.0.254", "40.0.0.1", 30080, 7)
    assert result.data[26:38] == frame(expected)[26:38]
    assert verify_checksums(result.data) == []


def test_two_services_on_one_pod_and_port():
    reference = world(
        vip("90.0.0.1", ["10.0.0.1:53"], protocol="udp", port=53),
        vip("90.0.0.1", ["10.0.0.1:53"], protocol="tcp", port=53),
        vip("90.0.0.2", ["10.0.0.1:53"], protocol="udp", port=5353),
        inside=INSIDE,
    )
    for build, vip_address, port, client_port in (
        (udp, "90.0.0.1", 53, 7),
        (tcp, "90.0.0.1", 53, 7),
        (udp, "90.0.0.2", 5353, 8),
    ):
        data = frame(build("40.0.0.1", vip_address, client_port, port))
        assert there_and_back(reference, data).data[26:38] == reply_to(data)[26:38]


def test_prefix_vip():
    reference = world(vip("90.0.0.0/8", ["10.0.0.1"]), inside=INSIDE)
    for last in range(1, 6):
        data = frame(udp("40.0.0.1", f"90.0.0.{last}", last, 80))
        assert there_and_back(reference, data).data[26:38] == reply_to(data)[26:38]


def test_other_traffic_of_pods_is_untouched():
    reference = world(vip("90.0.0.1", ["10.0.0.1"], port=80, target_port=8080), inside=INSIDE)
    send(reference, frame(tcp("40.0.0.1", "90.0.0.1", 7, 80)))
    for other in (
        tcp("10.0.0.1", "40.0.0.1", 8080, 8),  # another client port
        tcp("10.0.0.1", "40.0.0.1", 8081, 7),  # another pod port
        tcp("10.0.0.2", "40.0.0.1", 8080, 7),
        tcp("10.0.0.1", "40.0.0.2", 8080, 7),
        udp("10.0.0.1", "40.0.0.1", 8080, 7),
    ):
        result = send(reference, frame(other), interface=INSIDE)
        assert (result[:2], result.data) == (UNKNOWN, frame(other))
    assert reference.counters[Node.NAT4_IN2OUT, Reason.NO_TRANSLATION] == 5


def test_replies_refresh_the_flow():
    reference = world(vip("90.0.0.1", ["10.0.0.1"]), inside=INSIDE)
    reply = reply_to(send(reference, frame(udp("40.0.0.1", "90.0.0.1", 7, 80))).data)
    for now in (399, 798, 1197):
        assert verdict(reference, reply, now, interface=INSIDE) == RESTORED
    assert verdict(reference, reply, 1597, interface=INSIDE) == UNKNOWN


@pytest.mark.parametrize("ttl", [0, 1])
def test_ttl(ttl):
    reference = world(vip("90.0.0.1", ["10.0.0.1"]), inside=INSIDE)
    send(reference, frame(udp("40.0.0.1", "90.0.0.1", 7, 80)))
    reply = udp("10.0.0.1", "40.0.0.1", 80, 7)
    assert verdict(reference, frame(reply, ttl=ttl), 399, interface=INSIDE) == (
        Outcome.TRANSMIT,
        Reason.TIME_EXCEEDED_SENT,
    )
    assert reference.live_flows(400) == []  # not refreshed
    # only ours expire here: the rest is the next router's
    assert verdict(reference, frame(udp("10.0.0.9", "40.0.0.1", 1, 2), ttl=ttl), interface=INSIDE) == UNKNOWN


def test_removed_pod_and_deleted_vip():
    reference = world(vip("90.0.0.1", ["10.0.0.1"]), inside=INSIDE)
    reply = reply_to(send(reference, frame(udp("40.0.0.1", "90.0.0.1", 7, 80))).data)
    reference.set_vip(vip("90.0.0.1", ["10.0.0.2"]))
    assert verdict(reference, reply, interface=INSIDE) == RESTORED
    reference.del_vip(key("90.0.0.1"))
    assert verdict(reference, reply, interface=INSIDE) == UNKNOWN


def test_hairpin_order_within_a_vector():
    """All packets are balanced before any reply is looked up: a reply may even lie before what it answers."""
    reference = world(vip("90.0.0.1", ["10.0.0.1"]), inside=INSIDE)
    reply, request = udp("10.0.0.1", "40.0.0.1", 80, 7), udp("40.0.0.1", "90.0.0.1", 7, 80)
    results = reference.receive([RefPacket(frame(reply), INSIDE), RefPacket(frame(request))], 0)
    assert [result.reason for result in results] == [Reason.IN2OUT, Reason.FORWARDED]


class TestUntracked:
    def full(self, *vips):
        reference = world(*vips, inside=INSIDE, buckets=1)
        for port in range(1, 5):
            # ended connections: a half-open one would give way to a new flow
            send(reference, frame(tcp("40.0.0.9", "90.0.0.1", port, 80, flags=packets.RST)))
        return reference

    def test_restored_by_the_ring(self):
        reference = self.full(vip("90.0.0.1", FIVE, port=80, target_port=8080))
        for port in range(100, 120):
            data = frame(tcp("40.0.0.1", "90.0.0.1", port, 80))
            result = there_and_back(reference, data)
            assert (result[:2], result.data[26:38]) == (RESTORED, reply_to(data)[26:38])
            assert verify_checksums(result.data) == []
        assert reference.counters[Node.NAT4_IN2OUT, Reason.IN2OUT_UNTRACKED] == 20

    def test_any_port(self):
        reference = self.full(vip("90.0.0.1", FIVE))
        for build in (tcp, udp, sctp):
            data = frame(build("40.0.0.1", "90.0.0.1", 100, 443))
            assert there_and_back(reference, data).data[26:38] == reply_to(data)[26:38]
        data = frame(echo("40.0.0.1", "90.0.0.1"))
        assert there_and_back(reference, data).data[26:34] == reply_to(data)[26:34]

    def test_another_pod_than_the_rings(self):
        reference = self.full(vip("90.0.0.1", FIVE, port=80))
        sent = send(reference, frame(tcp("40.0.0.1", "90.0.0.1", 100, 80)))
        wrong = next(one for one in FIVE if one != str(sent.pod))
        assert verdict(reference, frame(tcp(wrong, "40.0.0.1", 80, 100)), interface=INSIDE) == UNKNOWN

    def test_nothing_untracked_yet(self):
        reference = self.full(vip("90.0.0.1", FIVE[:1], port=80))
        reply = frame(tcp("10.0.0.1", "40.0.0.1", 80, 100))
        assert verdict(reference, reply, interface=INSIDE) == UNKNOWN
        send(reference, frame(tcp("40.0.0.2", "90.0.0.1", 100, 80)))
        assert verdict(reference, reply, interface=INSIDE) == RESTORED

    def test_ambiguous(self):
        one, two = vip("90.0.0.1", FIVE[:1], port=80), vip("90.0.0.2", FIVE[:1], port=80)
        reference = self.full(one, two)
        reply = frame(tcp("10.0.0.1", "40.0.0.1", 80, 100))
        send(reference, frame(tcp("40.0.0.1", "90.0.0.1", 100, 80)))
        assert verdict(reference, reply, interface=INSIDE) == RESTORED
        send(reference, frame(tcp("40.0.0.1", "90.0.0.2", 100, 80)))
        assert verdict(reference, reply, interface=INSIDE) == UNKNOWN
        assert packet_counts(reference)[two.key] == {VipCounter.UNTRACKED_PACKET: 1}

    def test_prefix_cannot_tell(self):
        reference = self.full(vip("90.0.0.0/8", FIVE[:1], port=80))
        send(reference, frame(tcp("40.0.0.1", "90.0.0.1", 100, 80)))
        assert verdict(reference, frame(tcp("10.0.0.1", "40.0.0.1", 80, 100)), interface=INSIDE) == UNKNOWN

    def test_ttl(self):
        reference = self.full(vip("90.0.0.1", FIVE[:1], port=80))
        send(reference, frame(tcp("40.0.0.1", "90.0.0.1", 100, 80)))
        reply = frame(tcp("10.0.0.1", "40.0.0.1", 80, 100), ttl=1)
        assert verdict(reference, reply, interface=INSIDE) == (Outcome.TRANSMIT, Reason.TIME_EXCEEDED_SENT)


def test_shared_pod_and_port_by_two_families():
    reference = world(vip("90.0.0.1", ["10.0.0.1"]), vip("9000::1", ["2001::2"]), inside=INSIDE)
    for source, destination in (("40.0.0.1", "90.0.0.1"), ("4000::1", "9000::1")):
        assert there_and_back(reference, frame(packets.udp(source, destination, 7, 53)))[:2] == RESTORED


def test_sctp_fragments_of_a_reply():
    changes = vip("90.0.0.1", ["10.0.0.1"], protocol="sctp", port=80, target_port=8080)
    keeps = vip("90.0.0.2", ["10.0.0.2"], protocol="sctp", port=80)
    reference = world(changes, keeps, inside=INSIDE)
    for destination, pod, pod_port, expected in (
        ("90.0.0.1", "10.0.0.1", 8080, (Outcome.DROP, Reason.SCTP_FRAGMENT)),
        ("90.0.0.2", "10.0.0.2", 80, RESTORED),
    ):
        send(reference, frame(sctp("40.0.0.1", destination, 7, 80)))
        for piece in packets.fragments(sctp(pod, "40.0.0.1", pod_port, 7), 24):
            assert verdict(reference, piece, interface=INSIDE) == expected
