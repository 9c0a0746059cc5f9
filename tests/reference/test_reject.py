"""kp-reject of the reference, its answers taken apart by scapy."""

from ipaddress import ip_address

import pytest

import packets
from kuproxy.codes import Node, Outcome, Reason, VipCounter
from kuproxy.reference.reject import RateLimit
from packets import ACK, FIN, RST, SYN, echo, frame, icmp, other, sctp, tcp, udp, verify_checksums
from reference.worlds import send, verdict, vip, world

SENT = (Outcome.TRANSMIT, Reason.REJECT_SENT)
SUPPRESSED = (Outcome.DROP, Reason.REJECT_SUPPRESSED)
PAIRS = [("40.0.0.1", "90.0.0.1"), ("4000::1", "9000::1")]


def empty(**options):
    return world(vip("0.0.0.0/0", reject=True), vip("::/0", reject=True), **options)


def answer(data, **how):
    from scapy.layers.inet import IP
    from scapy.layers.inet6 import IPv6
    from scapy.layers.l2 import Ether

    result = send(empty(), data, **how)
    assert result[:2] == SENT
    assert not result.partial_checksum
    assert result.pod is None
    assert verify_checksums(result.data) == []
    ethernet = Ether(result.data)
    asked = Ether(data)
    assert (ethernet.src, ethernet.dst) == (asked.dst, asked.src)
    layer, question = (packet[IP] if IP in packet else packet[IPv6] for packet in (ethernet, asked))
    assert (ip_address(layer.src), ip_address(layer.dst)) == (
        ip_address(question.dst),
        ip_address(question.src),
    )
    if IP in ethernet:
        assert (layer.ttl, layer.id, str(layer.flags), layer.frag, layer.tos, layer.ihl) == (
            64,
            0,
            "DF",
            0,
            0,
            5,
        )
        assert layer.len == len(bytes(layer))
    else:
        assert (layer.hlim, layer.tc, layer.fl) == (64, 0, 0)
        assert layer.plen + 40 == len(bytes(layer))
    return layer


@pytest.mark.parametrize(("source", "destination"), PAIRS)
class TestReset:
    @pytest.mark.parametrize(
        ("flags", "data", "extra"),
        [(SYN, b"", 1), (SYN, b"early", 6), (0, b"", 0), (FIN, b"odd", 4), (SYN | FIN, b"", 2)],
    )
    def test_without_acknowledgement(self, source, destination, flags, data, extra):
        from scapy.layers.inet import TCP

        reset = answer(
            frame(tcp(source, destination, 7, 80, data, flags=flags, sequence=0xFFFFFFFE), pad_to=80)
        )[TCP]
        assert (reset.sport, reset.dport, str(reset.flags)) == (80, 7, "RA")
        assert (reset.seq, reset.ack) == (0, (0xFFFFFFFE + extra) % 2**32)
        assert (reset.window, reset.dataofs, reset.urgptr, bytes(reset.payload)) == (0, 5, 0, b"")

    def test_with_acknowledgement(self, source, destination):
        from scapy.layers.inet import TCP

        data = tcp(
            source, destination, 7, 80, b"data", flags=ACK | FIN, acknowledgement=12345, options=bytes(4)
        )
        reset = answer(frame(data, ttl=2))[TCP]
        assert (str(reset.flags), reset.seq, reset.ack, reset.window) == ("R", 12345, 0, 0)

    def test_partial_checksum_is_completed(self, source, destination):
        answer(frame(tcp(source, destination, 7, 80, partial=True)), partial_checksum=True)


@pytest.mark.parametrize(("source", "destination"), PAIRS)
@pytest.mark.parametrize("build", [udp, sctp, echo, other])
def test_port_unreachable(source, destination, build):
    ports = (7, 80) if build in (udp, sctp) else ()
    data = frame(build(source, destination, *ports))
    layer = answer(data)
    four = "." in source
    body = bytes(layer.payload)
    assert body[:2] == (b"\x03\x03" if four else b"\x01\x04")
    assert body[4:8] == bytes(4)
    assert body[8:] == data[14:]
    assert (layer.proto if four else layer.nh) == (1 if four else 58)


@pytest.mark.parametrize(("pair", "most"), [(PAIRS[0], 576), (PAIRS[1], 1280)])
def test_most_that_fits(pair, most):
    data = frame(udp(*pair, 7, 80, bytes(1400)), vlan=(7,))
    layer = answer(data)
    assert len(bytes(layer)) == most
    assert bytes(layer.payload)[8:] == data[18 : 18 + most - (28 if most == 576 else 48)]
    short = answer(data, room=218)
    assert len(bytes(short)) == 200


def test_padding_is_not_embedded():
    data = udp("40.0.0.1", "90.0.0.1", 7, 80, b"")
    assert bytes(answer(frame(data, pad_to=60)).payload)[8:] == frame(data)[14:]


def test_vlan_tags_stay():
    data = frame(tcp("40.0.0.1", "90.0.0.1", 7, 80), vlan=(7, 8), vlan_type=0x88A8)
    assert send(empty(), data).data[12:22] == data[12:22]
    answer(data)


def test_options_and_extension_headers_go():
    answer(frame(tcp("40.0.0.1", "90.0.0.1", 7, 80), options=bytes([1] * 8), tos=0x10))
    extensions = [packets.extension(packets.HOP_BY_HOP), packets.extension(packets.DESTINATION)]
    layer = answer(frame(tcp("4000::1", "9000::1", 7, 80), extensions=extensions, traffic_class=9))
    assert layer.nh == 6


@pytest.mark.parametrize(
    "datagram",
    [
        tcp("40.0.0.1", "90.0.0.1", 7, 80, flags=RST),
        tcp("4000::1", "9000::1", 7, 80, flags=RST | ACK),
        udp("0.0.0.0", "90.0.0.1", 7, 80),
        udp("::", "9000::1", 7, 80),
        udp("127.1.2.3", "90.0.0.1", 7, 80),
        udp("::1", "9000::1", 7, 80),
        udp("224.0.0.1", "90.0.0.1", 7, 80),
        udp("239.255.255.255", "90.0.0.1", 7, 80),
        udp("ff02::1", "9000::1", 7, 80),
        udp("40.0.0.1", "224.0.0.1", 7, 80),
        tcp("4000::1", "ff05::2", 7, 80),
        echo("40.0.0.1", "90.0.0.1", reply=True),
        echo("4000::1", "9000::1", reply=True),
        icmp("40.0.0.1", "90.0.0.1", 13),
        icmp("4000::1", "9000::1", 150),
    ],
)
def test_suppressed(datagram):
    assert verdict(empty(), frame(datagram)) == SUPPRESSED


def test_fragments():
    reference = empty()
    first, later = packets.fragments(udp("40.0.0.1", "90.0.0.1", 7, 80, bytes(100)), 56)
    assert verdict(reference, first) == SENT
    assert verdict(reference, later) == SUPPRESSED
    assert reference.vip_counters[vip("0.0.0.0/0").key] == {VipCounter.NO_SERVER: 2}


def test_pods_keep_it_from_happening():
    reference = world(vip("90.0.0.1", ["10.0.0.1"], reject=True))
    data = frame(tcp("40.0.0.1", "90.0.0.1", 7, 80, flags=packets.ACK))
    assert verdict(reference, data) == (Outcome.TRANSMIT, Reason.FORWARDED)
    reference.set_vip(vip("90.0.0.1", reject=True))
    assert verdict(reference, data) == (Outcome.TRANSMIT, Reason.FORWARDED)
    assert verdict(reference, data, 400) == SENT


def test_rate():
    reference = empty(reject_rate=20)
    data = frame(udp("40.0.0.1", "90.0.0.1", 7, 80))
    limited = (Outcome.DROP, Reason.REJECT_RATE_LIMITED)
    assert [verdict(reference, data, 5) for _ in range(21)] == [SENT] * 20 + [limited]
    assert verdict(reference, frame(tcp("40.0.0.1", "90.0.0.1", 7, 80)), 5) == SENT  # resets are not limited
    assert [verdict(reference, data, 6) for _ in range(3)] == [SENT, SENT, limited]
    assert [verdict(reference, data, 500) for _ in range(21)] == [SENT] * 20 + [limited]
    assert reference.counters[Node.REJECT, Reason.REJECT_SENT] == 43


def test_rates_that_ten_does_not_divide():
    limit = RateLimit(3)
    assert sum(limit.allows(now) for now in range(0, 1001) for _ in range(5)) == 3 + 300
    assert not RateLimit(0).allows(0)


def test_answer_to_a_node_port_comes_from_the_node():
    reference = world(vip("90.0.0.1", port=80, node_port=30080, reject=True))
    result = send(reference, frame(tcp("40.0.0.1", "40.0.0.254", 7, 30080)))
    assert result[:2] == SENT
    assert result.data[26:38] == frame(tcp("40.0.0.254", "40.0.0.1", 30080, 7))[26:38]
