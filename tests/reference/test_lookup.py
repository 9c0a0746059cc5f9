"""kp-lookup of the reference: which VIP a packet is for."""

import pytest

import packets
from kuproxy.codes import Node, Outcome, Reason
from packets import SAMPLES, echo, frame, icmp, icmp_error, other, sctp, tcp, udp
from reference.worlds import key, send, verdict, vip, world

POD = ["10.0.0.1"]


def vip_of(reference, datagram, **how):
    return send(reference, frame(datagram), **how).vip


def test_longest_prefix_wins():
    reference = world(
        vip("90.0.0.0/8", POD), vip("90.1.0.0/16", POD), vip("90.1.1.1/32", POD), vip("0.0.0.0/0", POD)
    )
    for destination, expected in (
        ("90.2.0.1", "90.0.0.0/8"),
        ("90.1.2.1", "90.1.0.0/16"),
        ("90.1.1.1", "90.1.1.1/32"),
        ("91.0.0.1", "0.0.0.0/0"),
    ):
        assert vip_of(reference, udp("40.0.0.1", destination, 1, 2)) == key(expected)


def test_within_a_prefix_port_then_protocol_then_any():
    reference = world(
        vip("90.0.0.1", POD),
        vip("90.0.0.1", POD, protocol="tcp"),
        vip("90.0.0.1", POD, protocol="tcp", port=80),
        vip("90.0.0.1", POD, port=81),
    )
    two = ("40.0.0.1", "90.0.0.1")
    assert vip_of(reference, tcp(*two, 1, 80)) == key("90.0.0.1", "tcp", 80)
    assert vip_of(reference, tcp(*two, 1, 79)) == key("90.0.0.1", "tcp")
    assert vip_of(reference, udp(*two, 1, 80)) == key("90.0.0.1")
    for build in (tcp, udp, sctp):
        assert vip_of(reference, build(*two, 1, 81)) == key("90.0.0.1", port=81)
    assert vip_of(reference, echo(*two)) == key("90.0.0.1")
    assert vip_of(reference, other(*two)) == key("90.0.0.1")


def test_any_protocol_with_a_port_means_those_with_ports():
    reference = world(vip("90.0.0.1", POD, port=80))
    assert vip_of(reference, sctp("40.0.0.1", "90.0.0.1", 1, 80)) == key("90.0.0.1", port=80)
    dccp = frame(packets.dccp("40.0.0.1", "90.0.0.1", 1, 80))
    assert verdict(reference, dccp) == (Outcome.PASS, Reason.NO_VIP)
    asked = frame(echo("40.0.0.1", "90.0.0.1"))
    assert verdict(reference, asked) == (Outcome.TRANSMIT, Reason.ECHO_ANSWERED)


def test_prefix_that_does_not_accept_is_passed_over():
    reference = world(vip("90.0.0.1", POD, protocol="tcp", port=80), vip("90.0.0.0/24", POD, protocol="udp"))
    assert vip_of(reference, udp("40.0.0.1", "90.0.0.1", 1, 80)) == key("90.0.0.0/24", "udp")
    assert verdict(reference, frame(tcp("40.0.0.1", "90.0.0.1", 1, 81))) == (Outcome.PASS, Reason.NO_VIP)


def test_families_are_apart():
    reference = world(vip("::/0", ["2001::2"]), vip("0.0.0.0/0", POD))
    assert vip_of(reference, udp("40.0.0.1", "90.0.0.1", 1, 2)) == key("0.0.0.0/0")
    assert vip_of(reference, udp("4000::1", "::5a00:1", 1, 2)) == key("::/0")


def test_deleted_vip():
    reference = world(vip("90.0.0.1", POD))
    reference.del_vip(key("90.0.0.1"))
    assert verdict(reference, frame(udp("40.0.0.1", "90.0.0.1", 1, 2))) == (Outcome.PASS, Reason.NO_VIP)
    with pytest.raises(KeyError):
        reference.del_vip(key("90.0.0.1"))


@pytest.mark.parametrize("kind", range(130, 138))
def test_neighbour_discovery_passes(kind):
    reference = world(vip("::/0", ["2001::2"]))
    data = frame(icmp("4000::1", "9000::1", kind, 0, bytes(20)))
    assert verdict(reference, data) == (Outcome.PASS, Reason.UNSUPPORTED_PROTOCOL)


@pytest.mark.parametrize("kind", [3, 4, 5, 11, 12])
def test_icmp_errors(kind):
    """Those that can concern a VIP, or come from where pods are, are looked into; others pass."""
    reference = world(vip("90.0.0.1", ["10.0.0.1"], protocol="tcp", port=80), inside=1)
    inner = tcp("90.0.0.1", "40.0.0.1", 80, 1)
    to_vip = frame(icmp_error("40.0.0.1", "90.0.0.1", inner, kind))
    from_pod = frame(icmp_error("10.0.0.1", "40.0.0.1", inner, kind))
    assert verdict(reference, to_vip) == (Outcome.TRANSMIT, Reason.ICMP_ERROR_TRANSLATED)
    assert verdict(reference, from_pod, interface=1) == (Outcome.PASS, Reason.NO_TRANSLATION)
    assert verdict(reference, from_pod) == (Outcome.PASS, Reason.NO_VIP)


@pytest.mark.parametrize("kind", [1, 2, 3, 4, 100, 127])
def test_icmp6_errors(kind):
    reference = world(vip("9000::/64", ["2001::2"]))
    data = frame(icmp_error("4000::1", "9000::1", udp("9000::1", "4000::1", 1, 2), kind))
    assert verdict(reference, data) == (Outcome.TRANSMIT, Reason.ICMP_ERROR_TRANSLATED)


@pytest.mark.parametrize("kind", [0, 8, 13, 14, 30])
def test_other_icmp_is_a_packet_like_any(kind):
    reference = world(vip("90.0.0.0/8", POD))
    assert verdict(reference, frame(icmp("40.0.0.1", "90.0.0.1", kind))) == (
        Outcome.TRANSMIT,
        Reason.FORWARDED,
    )


class TestNodePorts:
    def test_vpp_shape(self):
        reference = world(vip("90.0.0.0/8", POD, port=3306, node_port=30306, target_port=3307))
        for data in packets.vpp_flows(node_port=30306):
            assert verdict(reference, data) == (Outcome.TRANSMIT, Reason.FORWARDED)
        assert reference.counters[Node.NODEPORT4, Reason.VIP_MATCHED] == 5

    def test_protocol_and_family(self):
        reference = world(
            vip("90.0.0.1", POD, protocol="tcp", port=80, node_port=30080),
            vip("9000::1", ["2001::2"], port=80, node_port=30081),
        )
        assert vip_of(reference, tcp("40.0.0.1", "40.0.0.2", 1, 30080)) == key("90.0.0.1", "tcp", 80)
        assert vip_of(reference, udp("40.0.0.1", "40.0.0.2", 1, 30080)) is None
        assert vip_of(reference, tcp("4000::1", "4000::2", 1, 30080)) is None
        for build in (tcp, udp, sctp):
            assert vip_of(reference, build("4000::1", "4000::2", 1, 30081)) == key("9000::1", port=80)
        assert reference.counters[Node.NODEPORT6, Reason.VIP_MATCHED] == 3

    @pytest.mark.parametrize("loopback", ["127.0.0.1", "127.255.0.1"])
    @pytest.mark.parametrize("options", [{}, {"any_node_address": False, "node_addresses": ["127.0.0.1"]}])
    def test_never_on_loopback(self, loopback, options):
        reference = world(vip("90.0.0.1", POD, port=80, node_port=30080), **options)
        assert vip_of(reference, tcp("40.0.0.1", loopback, 1, 30080)) is None

    def test_never_on_loopback6(self):
        reference = world(vip("9000::1", ["2001::2"], port=80, node_port=30080))
        assert vip_of(reference, tcp("4000::1", "::1", 1, 30080)) is None

    def test_listed_addresses(self):
        from ipaddress import ip_address

        reference = world(
            vip("90.0.0.1", POD, port=80, node_port=30080),
            any_node_address=False,
            node_addresses=[ip_address("40.0.0.254")],
        )
        assert vip_of(reference, tcp("40.0.0.1", "40.0.0.254", 1, 30080)) is not None
        assert vip_of(reference, tcp("40.0.0.1", "40.0.0.253", 1, 30080)) is None

    def test_a_vip_goes_before_a_node_port(self):
        reference = world(vip("90.0.0.1", POD, port=80, node_port=30080), vip("90.0.0.0/8", POD))
        assert vip_of(reference, tcp("40.0.0.1", "90.0.0.1", 1, 30080)) == key("90.0.0.0/8")

    def test_conflict_is_refused(self):
        reference = world(vip("90.0.0.1", POD, protocol="tcp", port=80, node_port=30080))
        with pytest.raises(ValueError, match="30080"):
            reference.set_vip(vip("90.0.0.2", POD, port=80, node_port=30080))
        reference.set_vip(vip("90.0.0.2", POD, protocol="udp", port=80, node_port=30080))
        reference.set_vip(vip("9000::2", ["2001::2"], protocol="tcp", port=80, node_port=30080))


def test_marked_interfaces():
    reference = world()
    reference.mark_interface(1, nat4_in=True, nat6_in=False)
    reference.mark_interface(2, nat4_in=False, nat6_in=True)
    four, six = SAMPLES["ip4-udp"], SAMPLES["ip6-udp"]
    translated = (Outcome.PASS, Reason.NO_TRANSLATION)
    passed = (Outcome.PASS, Reason.NO_VIP)
    assert [verdict(reference, four, interface=i) for i in range(3)] == [passed, translated, passed]
    assert [verdict(reference, six, interface=i) for i in range(3)] == [passed, passed, translated]
    reference.mark_interface(1, nat4_in=False, nat6_in=False)
    assert verdict(reference, four, interface=1) == passed
