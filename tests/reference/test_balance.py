"""kp-balance and the table of flows of the reference."""

from ipaddress import ip_address

import pytest

import packets
from kuproxy.codes import Node, Outcome, Reason, VipCounter
from kuproxy.reference import RefPacket, flow_hash, maglev_ring
from packets import frame, sctp, tcp, udp, verify_checksums, vpp_flows
from reference.worlds import key, packet_counts, send, verdict, vip, world

FIVE = [f"10.0.0.{last}" for last in range(1, 6)]
VIP = key("90.0.0.0/8")


def client(i, port=3306, **how):
    return frame(udp(f"40.0.{i >> 8}.{i & 255}", "90.0.0.1", 10000 + i, port), **how)


def pod_of(reference, data, now=0):
    return str(send(reference, data, now).pod)


def test_vpp_shapes():
    """Five flows, as in VPP's own test: each to the pod that its slot says, with the target port."""
    reference = world(vip("90.0.0.0/8", FIVE, port=3306, target_port=3307))
    ring = maglev_ring(vip("90.0.0.0/8", FIVE).pods, 1024)
    for i, data in enumerate(vpp_flows(), 1):
        result = send(reference, data)
        hash_ = flow_hash(ip_address(f"40.0.0.{i}"), ip_address(f"90.0.0.{i}"), 10000 + i, 3306)
        expected = FIVE[ring[hash_ % 1024]]
        assert result.data == frame(udp(f"40.0.0.{i}", expected, 10000 + i, 3307, b"Test"), ttl=63)
        assert (result.outcome, result.vip, str(result.pod)) == (
            Outcome.TRANSMIT,
            key("90.0.0.0/8", port=3306),
            expected,
        )
    assert packet_counts(reference) == {key("90.0.0.0/8", port=3306): {VipCounter.FIRST_PACKET: 5}}


def test_vpp_shapes_ipv6():
    reference = world(vip("9000::/16", ["2001::2", "2001::3"]))
    for data in vpp_flows(version=6):
        result = send(reference, data)
        assert (result.outcome, verify_checksums(result.data)) == (Outcome.TRANSMIT, [])


def test_counters_of_a_flow():
    reference = world(vip("90.0.0.0/8", FIVE))
    for _ in range(3):
        send(reference, client(1))
    assert packet_counts(reference)[VIP] == {VipCounter.FIRST_PACKET: 1, VipCounter.NEXT_PACKET: 2}
    assert reference.counters == {
        (Node.LOOKUP, Reason.VIP_MATCHED): 3,
        (Node.BALANCE, Reason.FIRST_PACKET): 1,
        (Node.BALANCE, Reason.EXISTING_SESSION): 2,
        (Node.NAT44, Reason.FORWARDED): 3,
    }
    assert (reference.outcomes, reference.received) == ({Outcome.TRANSMIT: 3}, 3)


@pytest.mark.parametrize("ttl", [0, 1])
@pytest.mark.parametrize("decrement", [True, False])
def test_ttl_expired(ttl, decrement):
    reference = world(vip("90.0.0.0/8", FIVE), vip("9000::/16", ["2001::2"]), decrement_ttl=decrement)
    for datagram in (udp("40.0.0.1", "90.0.0.1", 1, 2), udp("4000::1", "9000::1", 1, 2)):
        assert verdict(reference, frame(datagram, ttl=ttl)) == (Outcome.TRANSMIT, Reason.TIME_EXCEEDED_SENT)
    assert reference.counters[Node.BALANCE, Reason.TTL_EXPIRED] == 2
    assert reference.live_flows(0) == []


def test_ttl():
    data = client(1, ttl=2)
    assert send(world(vip("90.0.0.0/8", FIVE)), data).data[22] == 1
    assert send(world(vip("90.0.0.0/8", FIVE), decrement_ttl=False), data).data[22] == 2


def test_other_family_of_pods():
    reference = world(vip("90.0.0.0/8", ["2001::2"], kind="nat46"), vip("9000::/16", FIVE, kind="nat64"))
    for data in (client(1), vpp_flows(version=6)[0]):
        assert verdict(reference, data) == (Outcome.TRANSMIT, Reason.FORWARDED)


def test_no_pod():
    reference = world(vip("90.0.0.0/8"))
    assert verdict(reference, client(1)) == (Outcome.DROP, Reason.NO_POD)
    assert packet_counts(reference)[VIP] == {VipCounter.NO_SERVER: 1}


def test_ports_at_the_pod():
    reference = world(
        vip("90.0.0.1", ["10.0.0.1"], port=80, target_port=8080),
        vip("90.0.0.2", ["10.0.0.1:9090"], port=80, target_port=8080),
        vip("90.0.0.3", ["10.0.0.1"], port=80),
        vip("90.0.0.4", ["10.0.0.1"]),
    )
    for last, expected in ((1, 8080), (2, 9090), (3, 80), (4, 80)):
        result = send(reference, frame(sctp("40.0.0.1", f"90.0.0.{last}", last, 80)))
        assert result.data == frame(sctp("40.0.0.1", "10.0.0.1", last, expected), ttl=63)


def test_a_flow_keeps_its_pod_and_port():
    reference = world(vip("90.0.0.1", ["10.0.0.1"], port=80, target_port=8080))
    data = frame(tcp("40.0.0.1", "90.0.0.1", 1, 80, flags=packets.ACK))
    first = send(reference, data)
    reference.set_vip(vip("90.0.0.1", FIVE, port=80, target_port=8081))
    assert send(reference, data) == first
    reference.set_vip(vip("90.0.0.1", FIVE[1:], port=80, target_port=8081))
    assert send(reference, data) == first
    reference.set_vip(vip("90.0.0.1", port=80))  # without pods: draining
    assert send(reference, data) == first


def test_stickiness_under_churn():
    reference = world(vip("90.0.0.0/8", FIVE))
    before = [pod_of(reference, client(i)) for i in range(200)]
    for last in range(6, 30):
        reference.set_vip(vip("90.0.0.0/8", [*FIVE[last % 3 :], f"10.0.0.{last}"]))
        assert [pod_of(reference, client(i), now=last) for i in range(200)] == before
    assert reference.vip_counters[VIP][VipCounter.FIRST_PACKET] == 200


class TestExpiry:
    def test_around_the_timeout(self):
        for age, expected in (
            (399, Reason.EXISTING_SESSION),
            (400, Reason.FIRST_PACKET),
            (401, Reason.FIRST_PACKET),
        ):
            reference = world(vip("90.0.0.0/8", FIVE))
            send(reference, client(1), 1000)
            reference.counters.clear()
            send(reference, client(1), 1000 + age)
            assert reference.counters[Node.BALANCE, expected] == 1

    def test_each_packet_refreshes(self):
        reference = world(vip("90.0.0.0/8", FIVE))
        for now in range(0, 4000, 399):
            send(reference, client(1), now)
        assert reference.vip_counters[VIP][VipCounter.FIRST_PACKET] == 1

    def test_over_the_wrap_of_the_clock(self):
        start = 2**32 - 5
        reference = world(vip("90.0.0.0/8", FIVE))
        send(reference, client(1), start)
        send(reference, client(1), (start + 300) % 2**32)
        [flow] = reference.live_flows((start + 300) % 2**32)
        assert flow.expires == (start + 700) % 2**32
        assert reference.live_flows((start + 699) % 2**32) == [flow]
        assert reference.live_flows((start + 700) % 2**32) == []

    def test_a_new_timeout_holds_for_what_is_written_then(self):
        reference = world(vip("90.0.0.0/8", FIVE))
        send(reference, client(1))
        reference.set_timeout(10)
        send(reference, client(2))
        assert [flow.expires for flow in reference.live_flows(1)] == [400, 10]
        send(reference, client(1), 1)
        assert [flow.expires for flow in reference.live_flows(1)] == [11, 10]


class TestFullBucket:
    def test_fifth_flow_is_untracked_yet_keeps_its_pod(self):
        reference = world(vip("90.0.0.0/8", FIVE), buckets=1)
        for i in range(4):
            send(reference, client(i))
        pods = {pod_of(reference, client(4)) for _ in range(5)}
        assert len(pods) == 1
        assert packet_counts(reference)[VIP] == {VipCounter.FIRST_PACKET: 4, VipCounter.UNTRACKED_PACKET: 5}
        assert len(reference.live_flows(0)) == 4

    def test_expired_flows_make_room(self):
        reference = world(vip("90.0.0.0/8", FIVE), buckets=1)
        for i in range(4):
            send(reference, client(i))
        send(reference, client(9), 400)
        assert packet_counts(reference)[VIP] == {VipCounter.FIRST_PACKET: 5}

    def test_flows_of_a_deleted_vip_make_room(self):
        reference = world(vip("90.0.0.0/8", FIVE), vip("91.0.0.1", FIVE), buckets=1)
        for i in range(4):
            send(reference, client(i))
        reference.del_vip(VIP)
        send(reference, frame(udp("40.0.0.9", "91.0.0.1", 1, 2)))
        assert packet_counts(reference)[key("91.0.0.1")] == {VipCounter.FIRST_PACKET: 1}

    def test_last_place_goes_to_the_first_of_a_vector(self):
        reference = world(vip("90.0.0.0/8", FIVE), buckets=1)
        reference.receive([RefPacket(client(i)) for i in range(6)], 0)
        assert [flow.client_port for flow in reference.live_flows(0)] == [10000, 10001, 10002, 10003]

    def test_full_reverse_line(self):
        """Two buckets hold 8 flows; a ninth with its reply in a line of 8 needs 4 buckets and some search."""
        reference = world(vip("90.0.0.0/8", FIVE[:1]), buckets=4)
        client_ports = [
            port
            for port in range(1, 2000)
            if flow_hash(ip_address("10.0.0.1"), ip_address("40.0.0.1"), 80, port) % 4 == 1
        ]
        tracked = 0
        for port in client_ports:
            forward = flow_hash(ip_address("40.0.0.1"), ip_address("90.0.0.1"), port, 80) % 4
            reference.counters.clear()
            send(reference, frame(udp("40.0.0.1", "90.0.0.1", port, 80)))
            tracked += reference.counters[Node.BALANCE, Reason.FIRST_PACKET]
            if tracked == 8 and reference.counters[Node.BALANCE, Reason.UNTRACKED]:
                in_bucket = [
                    flow
                    for flow in reference.live_flows(0)
                    if flow_hash(flow.client, flow.address, flow.client_port, flow.port) % 4 == forward
                ]
                if len(in_bucket) < 4:
                    break
        else:
            pytest.skip("no port collides")
        assert tracked == 8


def test_made_again_is_another_vip():
    reference = world(vip("90.0.0.0/8", FIVE))
    send(reference, client(1))
    reference.del_vip(VIP)
    reference.set_vip(vip("90.0.0.0/8", FIVE))
    assert reference.live_flows(0) == []
    assert packet_counts(reference) == {VIP: {}}
    send(reference, client(1))
    assert packet_counts(reference) == {VIP: {VipCounter.FIRST_PACKET: 1}}


class TestClash:
    """Two VIPs share their only pod and port: a client that uses one source port to both could not be told apart."""

    def test_another_source_port_without_alternative(self):
        reference = world(vip("90.0.0.1", FIVE[:1], port=80), vip("90.0.0.2", FIVE[:1], port=80))
        assert verdict(reference, frame(tcp("40.0.0.1", "90.0.0.1", 7, 80))) == (
            Outcome.TRANSMIT,
            Reason.FORWARDED,
        )
        result = send(reference, frame(tcp("40.0.0.1", "90.0.0.2", 7, 80)))
        assert result[:2] == (Outcome.TRANSMIT, Reason.FORWARDED)
        [flow] = [flow for flow in reference.live_flows(0) if str(flow.address) == "90.0.0.2"]
        assert str(flow.source) == "40.0.0.1"
        assert flow.source_port != 7
        assert result.data == frame(tcp("40.0.0.1", "10.0.0.1", flow.source_port, 80), ttl=63)
        assert reference.counters[Node.BALANCE, Reason.PORT_TRANSLATED] == 1

    def test_dropped_without_ports(self):
        reference = world(vip("90.0.0.1", FIVE[:1]), vip("90.0.0.2", FIVE[:1]))
        send(reference, frame(packets.echo("40.0.0.1", "90.0.0.1")))
        assert verdict(reference, frame(packets.echo("40.0.0.1", "90.0.0.2"))) == (
            Outcome.DROP,
            Reason.FLOW_CLASH,
        )

    def test_other_protocols_do_not_clash(self):
        reference = world(vip("90.0.0.1", FIVE[:1], port=80), vip("90.0.0.2", FIVE[:1], port=80))
        send(reference, frame(tcp("40.0.0.1", "90.0.0.1", 7, 80)))
        assert verdict(reference, frame(udp("40.0.0.1", "90.0.0.2", 7, 80))) == (
            Outcome.TRANSMIT,
            Reason.FORWARDED,
        )
        assert verdict(reference, frame(tcp("40.0.0.1", "90.0.0.2", 8, 80))) == (
            Outcome.TRANSMIT,
            Reason.FORWARDED,
        )

    def test_free_again_after_the_first_flow(self):
        reference = world(vip("90.0.0.1", FIVE[:1], port=80), vip("90.0.0.2", FIVE[:1], port=80))
        send(reference, frame(tcp("40.0.0.1", "90.0.0.1", 7, 80)))
        second = frame(tcp("40.0.0.1", "90.0.0.2", 7, 80))
        assert verdict(reference, second, 400) == (Outcome.TRANSMIT, Reason.FORWARDED)

    def test_next_slots_are_tried(self):
        reference = world(vip("90.0.0.1", FIVE), vip("90.0.0.2", FIVE))
        avoided = 0
        for port in range(1, 200):
            one = pod_of(reference, frame(tcp("40.0.0.1", "90.0.0.1", port, 80)))
            reference.counters.clear()
            two = pod_of(reference, frame(tcp("40.0.0.1", "90.0.0.2", port, 80)))
            assert one != two
            if reference.counters[Node.BALANCE, Reason.CLASH_AVOIDED]:
                hash_ = flow_hash(ip_address("40.0.0.1"), ip_address("90.0.0.2"), port, 80)
                ring = maglev_ring(vip("90.0.0.2", FIVE).pods, 1024)
                following = [FIVE[ring[(hash_ + step) % 1024]] for step in range(65)]
                assert following[0] == one
                assert two == next(other for other in following if other != one)
                avoided += 1
        assert avoided > 10

    def test_not_beyond_once_around(self):
        two = vip("90.0.0.2", FIVE[:2], new_len=2)
        reference = world(vip("90.0.0.1", FIVE[:1], port=80), two)
        for port in range(1, 40):
            send(reference, frame(tcp("40.0.0.1", "90.0.0.1", port, 80)))
            assert pod_of(reference, frame(tcp("40.0.0.1", "90.0.0.2", port, 80))) == FIVE[1]

    def test_a_prefix_vip_clashes_with_itself(self):
        reference = world(vip("90.0.0.0/8", FIVE[:1]))
        assert verdict(reference, frame(tcp("40.0.0.1", "90.0.0.1", 7, 80)))[0] == Outcome.TRANSMIT
        send(reference, frame(tcp("40.0.0.1", "90.0.0.2", 7, 80)))
        one, two = reference.live_flows(0)
        assert (one.pod, one.pod_port) == (two.pod, two.pod_port)
        assert one.source_port != two.source_port


class TestResize:
    def test_flows_are_kept(self):
        reference = world(vip("90.0.0.0/8", FIVE), buckets=64)
        for i in range(40):
            send(reference, client(i))
        before = reference.live_flows(0)
        for buckets in (1024, 128, 64):
            reference.set_buckets(buckets, 0)
            assert reference.live_flows(0) == before
            assert all(verdict(reference, client(i))[0] == Outcome.TRANSMIT for i in range(40))
        assert reference.vip_counters[VIP][VipCounter.FIRST_PACKET] == len(before)

    def test_refused_if_they_do_not_fit(self):
        reference = world(vip("90.0.0.0/8", FIVE), buckets=1024)
        for i in range(5):
            send(reference, client(i))
        before = reference.live_flows(0)
        with pytest.raises(ValueError, match="do not hold the 5 live flows"):
            reference.set_buckets(1, 0)
        assert (reference.live_flows(0), reference.buckets) == (before, 1024)
        reference.set_buckets(1, 400)  # they have expired
        assert reference.buckets == 1

    def test_sizes(self):
        with pytest.raises(ValueError, match="power of two"):
            world(buckets=3)


def test_protocols_without_ports_have_flows():
    reference = world(vip("90.0.0.0/8", ["10.0.0.1"]))
    for identifier in (1, 2):
        result = send(reference, frame(packets.echo("40.0.0.1", "90.0.0.1", identifier)))
        assert result.data == frame(packets.echo("40.0.0.1", "10.0.0.1", identifier), ttl=63)
    [flow] = reference.live_flows(0)
    assert flow[:5] == (1, ip_address("40.0.0.1"), 0, ip_address("90.0.0.1"), 0)


def test_sweeping_and_collecting_change_nothing_that_lives():
    reference = world(vip("90.0.0.0/8", FIVE), buckets=4)
    for i in range(8):
        send(reference, client(i), i * 100)
    before = reference.live_flows(701)
    reference.sweep(701)
    reference.collect(701)
    assert reference.live_flows(701) == before
    assert 0 < len(before) < 8
