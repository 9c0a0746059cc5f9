"""kp-input of the reference: each check by a packet that fails it alone, and the fields of those that pass."""

import struct
from ipaddress import ip_address

import pytest

import packets
from kuproxy.codes import Outcome, Reason
from kuproxy.reference import Packet, Refused, parse
from packets import SAMPLES, extension, fragment_header, frame, sctp, tcp, udp

UDP4 = udp("40.0.0.1", "90.0.0.1", 10001, 53)
UDP6 = udp("4000::1", "9000::1", 10001, 53)


def parsed(data):
    packet = Packet(bytearray(data))
    parse(packet)
    return packet


def refusal(data):
    with pytest.raises(Refused) as caught:
        parsed(data)
    return caught.value.outcome, caught.value.reason


def dropped(data):
    outcome, reason = refusal(data)
    assert outcome == Outcome.DROP
    return reason


def patched(data, offset, new, *, fix_header=True):
    """The frame with other bytes at `offset`, and (IPv4) the header checksum made right again."""
    data = bytearray(data)
    data[offset : offset + len(new)] = new
    if fix_header and data[12:14] == b"\x08\x00":
        length = max(20, (data[14] & 15) * 4)
        data[24:26] = bytes(2)
        data[24:26] = struct.pack(">H", packets.internet_checksum(bytes(data[14 : 14 + length])))
    return bytes(data)


@pytest.mark.parametrize("name", SAMPLES)
def test_samples_are_valid(name):
    parsed(SAMPLES[name])


@pytest.mark.parametrize("name", SAMPLES)
def test_scapy_finds_the_same_fields(name):
    from scapy.layers.inet import IP, TCP, UDP
    from scapy.layers.inet6 import IPv6
    from scapy.layers.l2 import Ether
    from scapy.layers.sctp import SCTP

    packet = parsed(SAMPLES[name])
    theirs = Ether(SAMPLES[name])
    layer = theirs[IP] if packet.family == 4 else theirs[IPv6]
    assert ip_address(layer.src) == packet.source
    assert ip_address(layer.dst) == packet.destination
    assert (layer.ttl if packet.family == 4 else layer.hlim) == packet.ttl
    assert packet.end - packet.l3 == (layer.len if packet.family == 4 else layer.plen + 40)
    if packet.is_later_fragment:
        return
    for kind in (TCP, UDP, SCTP):
        if kind in theirs and "icmp-error" not in name:
            assert (theirs[kind].sport, theirs[kind].dport) == (packet.source_port, packet.destination_port)
            assert bytes(theirs[kind])[:4] == packet.data[packet.l4 : packet.l4 + 4]
            break
    else:
        assert (packet.source_port, packet.destination_port) == (0, 0)


@pytest.mark.parametrize("length", range(14))
def test_truncated_ethernet(length):
    assert dropped(bytes(length)) == Reason.TRUNCATED_ETHERNET


def test_truncated_vlan_tags():
    tagged = frame(UDP4, vlan=(1, 2))
    assert [dropped(tagged[:length]) for length in range(14, 22)] == [Reason.TRUNCATED_ETHERNET] * 8
    assert dropped(tagged[:22]) == Reason.TRUNCATED_IPV4


@pytest.mark.parametrize("ethertype", [0x0806, 0x8847, 0, 1500, 0x9100])
def test_not_ip(ethertype):
    assert refusal(bytes(12) + struct.pack(">H", ethertype)) == (Outcome.PASS, Reason.NOT_IP)


def test_third_vlan_tag_is_not_ip():
    assert parsed(frame(UDP4, vlan=(1, 2))).l3 == 22
    assert refusal(frame(UDP4, vlan=(1, 2, 3))) == (Outcome.PASS, Reason.NOT_IP)


def test_ipv4_checks():
    good = frame(UDP4)
    assert dropped(good[:33]) == Reason.TRUNCATED_IPV4
    assert dropped(patched(good, 14, b"\x65")) == Reason.BAD_VERSION
    assert dropped(patched(good, 14, b"\x44")) == Reason.BAD_HEADER_LENGTH
    assert (
        dropped(patched(frame(udp("40.0.0.1", "90.0.0.1", 1, 2, b"")), 14, b"\x4f")) == Reason.TRUNCATED_IPV4
    )
    assert dropped(patched(good, 16, struct.pack(">H", 19))) == Reason.BAD_TOTAL_LENGTH
    assert dropped(patched(good, 16, struct.pack(">H", len(good) - 13))) == Reason.BAD_TOTAL_LENGTH
    assert dropped(patched(good, 15, b"\x01", fix_header=False)) == Reason.BAD_IPV4_CHECKSUM


def test_ipv4_checks_come_in_order():
    """A packet with all faults is refused for the first; mended one by one it goes on to the next."""
    bad = bytearray(frame(UDP4))
    bad[14] = 0x54
    bad[16:18] = b"\xff\xff"
    bad[24] ^= 1
    assert dropped(bad) == Reason.BAD_VERSION
    bad[14] = 0x44
    assert dropped(bad) == Reason.BAD_HEADER_LENGTH
    bad[14] = 0x4F
    assert dropped(bad) == Reason.TRUNCATED_IPV4
    bad[14] = 0x45
    assert dropped(bad) == Reason.BAD_TOTAL_LENGTH
    bad[16:18] = struct.pack(">H", len(bad) - 14)
    assert dropped(bad) == Reason.BAD_IPV4_CHECKSUM
    bad[24] ^= 1
    parsed(bad)


def test_padding_is_no_part_of_the_packet():
    assert parsed(frame(UDP4, pad_to=60)).end == len(frame(UDP4))
    assert dropped(patched(frame(UDP4, pad_to=60), 38, struct.pack(">H", 20))) == Reason.BAD_L4_LENGTH


def test_ipv6_checks():
    good = frame(UDP6)
    assert dropped(good[:53]) == Reason.TRUNCATED_IPV6
    assert dropped(patched(good, 14, b"\x40")) == Reason.BAD_VERSION
    assert dropped(patched(good, 18, struct.pack(">H", len(good) - 53))) == Reason.BAD_TOTAL_LENGTH


def test_extension_headers():
    nine = [extension(packets.DESTINATION)] * 9
    assert dropped(frame(UDP6, extensions=nine)) == Reason.EXTENSION_HEADER_LIMIT
    assert parsed(frame(UDP6, extensions=nine[1:])).protocol == packets.UDP
    too_long = extension(packets.HOP_BY_HOP, size=200)
    assert dropped(frame(UDP6, extensions=[too_long])) == Reason.TRUNCATED_EXTENSION
    empty = packets.other("4000::1", "9000::1", packets.DESTINATION, b"")
    assert dropped(frame(empty)) == Reason.TRUNCATED_EXTENSION
    # a ninth header is one too many even if nothing of it is there
    assert dropped(frame(empty, extensions=nine[1:])) == Reason.EXTENSION_HEADER_LIMIT


def test_authentication_header_is_a_protocol():
    packet = parsed(SAMPLES["ip6-authentication"])
    assert (packet.protocol, packet.source_port) == (packets.AUTHENTICATION, 0)


def test_atomic_fragment_is_no_fragment():
    packet = parsed(SAMPLES["ip6-atomic-fragment"])
    assert (packet.is_fragment, packet.destination_port) == (False, 53)


@pytest.mark.parametrize("version", [4, 6])
def test_fragments(version):
    first, second, third = (parsed(SAMPLES[f"ip{version}-fragment-{number}"]) for number in range(3))
    assert (first.is_fragment, first.is_later_fragment, first.destination_port) == (True, False, 53)
    assert (second.is_fragment, second.is_later_fragment, second.destination_port) == (True, True, 0)
    assert (third.is_fragment, third.is_later_fragment) == (True, True)
    assert {first.identification, second.identification, third.identification} == {0x4321}
    assert first.protocol == second.protocol == packets.UDP


def test_walk_ends_at_a_later_fragment():
    """What lies behind its fragment header is payload, though it claims to be another extension header."""
    data = packets.other("4000::1", "9000::1", packets.DESTINATION, b"\xff" * 8)
    packet = parsed(frame(data, extensions=[fragment_header(64, True, 5)]))
    assert (packet.is_later_fragment, packet.protocol) == (True, packets.DESTINATION)


def test_extension_header_behind_the_fragment_header_of_a_first_fragment():
    headers = [fragment_header(0, True, 5), extension(packets.DESTINATION)]
    packet = parsed(frame(UDP6, extensions=headers))
    assert (packet.is_fragment, packet.is_later_fragment, packet.destination_port) == (True, False, 53)


@pytest.mark.parametrize(
    ("protocol", "needed"), [(6, 20), (17, 8), (132, 12), (1, 8), (58, 0), (136, 0), (47, 0)]
)
def test_shortest_ipv4_payloads(protocol, needed):
    def data(length):
        payload = bytearray(length)
        if protocol == 6 and length > 12:
            payload[12] = 0x50
        if protocol == 17 and length > 5:
            payload[5] = 8
        return packets.other("40.0.0.1", "90.0.0.1", protocol, bytes(payload))

    assert parsed(frame(data(needed))).protocol == protocol
    for length in range(needed):
        assert dropped(frame(data(length))) == Reason.TRUNCATED_L4
        assert dropped(frame(data(length), more=True)) == Reason.FRAGMENT_FIRST_TOO_SHORT
        parsed(frame(data(length), offset=8))  # nothing is looked for in a later one


def test_icmp_of_the_other_family_is_another_protocol():
    parsed(frame(packets.other("4000::1", "9000::1", packets.ICMP, b"")))
    assert (
        dropped(frame(packets.other("4000::1", "9000::1", packets.ICMP6, b"1234567"))) == Reason.TRUNCATED_L4
    )


def test_tcp_data_offset():
    good = frame(tcp("40.0.0.1", "90.0.0.1", 1, 2))
    assert dropped(patched(good, 46, b"\x40")) == Reason.BAD_L4_LENGTH
    assert dropped(patched(good, 46, b"\x60")) == Reason.BAD_L4_LENGTH
    assert dropped(
        frame(packets.other("40.0.0.1", "90.0.0.1", 6, good[34:46] + b"\x60" + bytes(7)), more=True)
    ) == (Reason.BAD_L4_LENGTH)


def test_udp_length():
    good = frame(UDP4)
    assert dropped(patched(good, 38, struct.pack(">H", 7))) == Reason.BAD_L4_LENGTH
    assert dropped(patched(good, 38, struct.pack(">H", 14))) == Reason.BAD_L4_LENGTH
    parsed(patched(good, 38, struct.pack(">H", 12)))  # shorter than the packet: allowed
    first = packets.fragments(udp("40.0.0.1", "90.0.0.1", 1, 2, bytes(100)), 48)[0]
    parsed(first)  # says 108, has 48
    assert dropped(patched(first, 38, struct.pack(">H", 7))) == Reason.BAD_L4_LENGTH


@pytest.mark.parametrize("name", SAMPLES)
def test_every_truncation_has_one_outcome(name):
    for length in range(len(SAMPLES[name])):
        packet = Packet(bytearray(SAMPLES[name][:length]))
        try:
            parse(packet)
        except Refused as refused:
            assert refused.outcome == Outcome.DROP
        else:
            assert "padded" in name and length >= packet.end


def test_sctp_ports():
    packet = parsed(frame(sctp("4000::1", "9000::1", 5, 6)))
    assert (packet.source_port, packet.destination_port) == (5, 6)
