"""Between IPv4 and IPv6, packet by packet: each rule of RFC 7915 that the data plane follows, and where it ends."""

import struct
from dataclasses import replace
from ipaddress import IPv4Network, ip_address

import pytest

import packets
from kuproxy.codes import Node, Outcome, Reason
from kuproxy.reference import RefPacket
from packets import echo, frame, ip_packet, reply_to, sctp, tcp, udp, verify_checksums
from reference.worlds import send, verdict, vip, world

INSIDE = 1
POD4, POD6 = "10.0.0.1", "2001::2"
CLIENT4, CLIENT6 = "40.0.0.1", "4000::1"
MAPPED = "64:ff9b:1::2800:1"  # RFC 6052 section 2.2: the prefix, then 40.0.0.1
POOL = IPv4Network("192.0.0.0/29")


def both(**options):
    """`90.0.0.1` has an IPv6 pod, `9000::1` an IPv4 one."""
    return world(
        vip("90.0.0.1", [POD6], kind="nat46"), vip("9000::1", [POD4], kind="nat64"), inside=INSIDE, **options
    )


def addresses(data):
    l3 = packets.headers(data)[0]
    at, width = (l3 + 12, 4) if data[l3] >> 4 == 4 else (l3 + 8, 16)
    return ip_address(data[at : at + width]), ip_address(data[at + width : at + 2 * width])


def l4_of(data):
    return data[packets.headers(data)[1] :]


@pytest.mark.parametrize("build", [tcp, udp, sctp], ids=["tcp", "udp", "sctp"])
def test_ipv4_client_of_an_ipv6_pod(build):
    reference = both()
    there = send(reference, frame(build(CLIENT4, "90.0.0.1", 7000, 80), tos=0xB8))
    assert there[:2] == (Outcome.TRANSMIT, Reason.FORWARDED)
    assert addresses(there.data) == (ip_address(MAPPED), ip_address(POD6))
    assert verify_checksums(there.data) == []
    assert there.data[12:14] == b"\x86\xdd"
    assert there.data[14:18] == bytes.fromhex("6b800000")  # section 4.1: traffic class from TOS, flow label 0
    assert there.data[21] == 63  # hop limit: TTL less one
    back = send(reference, reply_to(there.data), interface=INSIDE)
    assert back[:2] == (Outcome.TRANSMIT, Reason.IN2OUT)
    assert addresses(back.data) == (ip_address("90.0.0.1"), ip_address(CLIENT4))
    assert l4_of(back.data)[:4] == struct.pack(">HH", 80, 7000)
    assert back.data[15] == 0xB8  # section 5.1: TOS from traffic class
    assert verify_checksums(back.data) == []


@pytest.mark.parametrize("build", [tcp, udp, sctp], ids=["tcp", "udp", "sctp"])
def test_ipv6_client_of_an_ipv4_pod(build):
    reference = both()
    there = send(reference, frame(build(CLIENT6, "9000::1", 7000, 80)))
    assert there[:2] == (Outcome.TRANSMIT, Reason.FORWARDED)
    source, destination = addresses(there.data)
    assert source in POOL and destination == ip_address(POD4)
    assert verify_checksums(there.data) == []
    back = send(reference, reply_to(there.data), interface=INSIDE)
    assert back[:2] == (Outcome.TRANSMIT, Reason.IN2OUT)
    assert addresses(back.data) == (ip_address("9000::1"), ip_address(CLIENT6))
    assert l4_of(back.data)[:4] == struct.pack(">HH", 80, 7000)
    assert verify_checksums(back.data) == []


@pytest.mark.parametrize(("client", "address"), [(CLIENT4, "90.0.0.1"), (CLIENT6, "9000::1")])
def test_echo(client, address):
    """Sections 4.2 and 5.2: 8 ↔ 128, 0 ↔ 129; a pool's identifiers are its ports (RFC 6146 section 3.5.3)."""
    reference = both()
    seen = set()
    for identifier in (5, 6):
        there = send(reference, frame(echo(client, address, identifier=identifier, data=b"odd")))
        assert there.outcome == Outcome.TRANSMIT and verify_checksums(there.data) == []
        seen.add(l4_of(there.data)[4:6])
        back = send(reference, reply_to(there.data), interface=INSIDE)
        assert back[:2] == (Outcome.TRANSMIT, Reason.IN2OUT) and verify_checksums(back.data) == []
        assert l4_of(back.data)[4:] == l4_of(frame(echo(client, address, identifier=identifier, data=b"odd")))[4:]
    assert len(seen) == 2


def test_udp_without_checksum_gets_one():
    """RFC 7915 section 4.5: IPv6 demands it."""
    result = send(both(), frame(udp(CLIENT4, "90.0.0.1", 7, 80, no_checksum=True)))
    assert l4_of(result.data)[6:8] != bytes(2) and verify_checksums(result.data) == []


def test_first_fragment_without_checksum_is_dropped():
    """RFC 7915 section 4.5: the sum of the other fragments is unknown."""
    data = packets.fragments(udp(CLIENT4, "90.0.0.1", 7, 80, bytes(100), no_checksum=True), 48)[0]
    assert verdict(both(), data) == (Outcome.DROP, Reason.ZERO_CHECKSUM_FRAGMENT)


def test_partial_checksum_stays_partial():
    """Only the pseudo-header's sum changes: by both addresses, not by the ports."""
    reference = both()
    result = send(reference, frame(tcp(CLIENT4, "90.0.0.1", 7, 80, partial=True)), partial_checksum=True)
    assert result.partial_checksum
    complete = frame(tcp(MAPPED, POD6, 7, 80, partial=True))
    assert l4_of(result.data)[16:18] == l4_of(complete)[16:18]


@pytest.mark.parametrize(("size", "dont_fragment"), [(1240, False), (1241, True)])
def test_dont_fragment_by_size(size, dont_fragment):
    """RFC 7915 section 5.1: clear up to 1260 bytes, set above."""
    result = send(both(), frame(udp(CLIENT6, "9000::1", 7, 80, bytes(size - 8))))
    assert bool(result.data[20] & 0x40) is dont_fragment
    assert verify_checksums(result.data) == []


def test_identifications_differ():
    """RFC 7915 section 5.1: from a generator at the translator."""
    reference = both()
    data = frame(udp(CLIENT6, "9000::1", 7, 80))
    assert send(reference, data).data[18:20] != send(reference, data).data[18:20]


def test_long_packet_without_dont_fragment_is_cut_to_1280():
    """RFC 7915 section 4: fragments of at most 1280 bytes, with the packet's identification."""
    reference = both()
    datagram = udp(CLIENT4, "90.0.0.1", 7, 80, bytes(range(256)) * 11)
    results = reference.receive([RefPacket(frame(datagram, identification=0xABCD))], 0)
    assert [len(result.data) - 14 for result in results] == [1280, 1280, 48 + len(datagram.payload) - 2464]
    assert {result.outcome for result in results} == {Outcome.TRANSMIT}
    headers = [struct.unpack(">BBHI", result.data[54:62]) for result in results]
    assert headers == [(17, 0, 1, 0xABCD), (17, 0, 1233, 0xABCD), (17, 0, 2464, 0xABCD)]
    whole = b"".join(result.data[62:] for result in results)
    assert packets.ipv6(udp(MAPPED, POD6, 7, 80, bytes(range(256)) * 11))[40:] == whole
    assert reference.counters[Node.NAT46, Reason.FRAGMENTED] == 2
    assert sum(reference.outcomes.values()) == reference.received == 1


def test_fragments_keep_their_place():
    """RFC 7915 sections 4.1 and 5.1.1: offset and more-fragments bit are copied, the identification's low 16 bits."""
    reference = both()
    for client, address in ((CLIENT4, "90.0.0.1"), (CLIENT6, "9000::1")):
        pieces = packets.fragments(udp(client, address, 7, 80, bytes(100)), 48, identification=0x4321)
        results = [send(reference, piece) for piece in pieces]
        assert {result[:2] for result in results} == {(Outcome.TRANSMIT, Reason.FORWARDED)}
        for offset, result in zip((0, 48, 96), results, strict=True):
            more = offset < 96
            if client == CLIENT4:
                assert result.data[56:62] == struct.pack(">HI", offset | more, 0x4321)
            else:
                assert result.data[18:22] == struct.pack(">HH", 0x4321, offset // 8 | more << 13)
        assert len({addresses(result.data) for result in results}) == 1


def test_too_big_is_told():
    """RFC 7915 section 4: with DF, fragmentation needed with the MTU less 20; the other way, plus 20."""
    reference = both(translation_mtu=1400)
    result = send(reference, frame(udp(CLIENT4, "90.0.0.1", 7, 80, bytes(1400)), dont_fragment=True))
    assert result[:2] == (Outcome.TRANSMIT, Reason.PACKET_TOO_BIG_SENT)
    assert l4_of(result.data)[:2] == bytes([3, 4]) and l4_of(result.data)[4:8] == struct.pack(">I", 1380)
    assert verify_checksums(result.data) == []
    result = send(reference, frame(udp(CLIENT6, "9000::1", 7, 80, bytes(1400))))
    assert result[:2] == (Outcome.TRANSMIT, Reason.PACKET_TOO_BIG_SENT)
    assert l4_of(result.data)[:2] == bytes([2, 0]) and l4_of(result.data)[4:8] == struct.pack(">I", 1420)
    assert verify_checksums(result.data) == []


def test_source_route_fails_and_other_options_are_ignored():
    """RFC 7915 section 4.1."""
    reference = both()
    data = udp(CLIENT4, "90.0.0.1", 7, 80)
    result = send(reference, frame(data, options=bytes([131, 7, 4, 1, 2, 3, 4, 0])))
    assert result[:2] == (Outcome.TRANSMIT, Reason.SOURCE_ROUTE_SENT)
    assert l4_of(result.data)[:2] == bytes([3, 5])
    for options in (bytes([131, 7, 8, 1, 2, 3, 4, 0]), bytes([148, 4, 0, 0])):
        assert verdict(reference, frame(data, options=options)) == (Outcome.TRANSMIT, Reason.FORWARDED)


def test_extension_headers_are_skipped_but_a_routing_header_in_use_is_a_problem():
    """RFC 7915 section 5.1: pointer to "segments left"."""
    reference = both()
    datagram = udp(CLIENT6, "9000::1", 7, 80)
    chain = [packets.extension(packets.HOP_BY_HOP), packets.extension(packets.ROUTING)]
    result = send(reference, frame(datagram, extensions=chain))
    assert result.outcome == Outcome.TRANSMIT and verify_checksums(result.data) == []
    assert len(result.data) == 14 + 20 + len(datagram.payload)
    chain[1] = (packets.ROUTING, bytes([0, 2, 1, 0, 0, 0, 0]))
    result = send(reference, frame(datagram, extensions=chain))
    assert result[:2] == (Outcome.TRANSMIT, Reason.PARAMETER_PROBLEM_SENT)
    assert l4_of(result.data)[:2] == bytes([4, 0]) and l4_of(result.data)[4:8] == struct.pack(">I", 40 + 8 + 3)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (frame(packets.other(CLIENT4, "90.0.0.1")), Reason.UNTRANSLATABLE_PROTOCOL),
        (frame(packets.icmp(CLIENT4, "90.0.0.1", 13)), Reason.UNTRANSLATABLE_ICMP),
        (packets.fragments(echo(CLIENT6, "9000::1", data=bytes(99)), 48)[0], Reason.UNTRANSLATABLE_FRAGMENT),
    ],
)
def test_what_has_no_form_in_the_other_family(data, reason):
    """RFC 7915 section 1.2 (fragmented ICMP), 4.2 (timestamps); RFC 6146 knows TCP, UDP and ICMP only."""
    assert verdict(both(), data) == (Outcome.DROP, reason)


def test_sctp_fragment_whose_port_must_change():
    data = packets.fragments(sctp(CLIENT6, "9000::1", 7, 80, bytes(100)), 48)[0]
    assert verdict(both(), data) == (Outcome.DROP, Reason.SCTP_FRAGMENT)


def test_expired():
    """RFC 7915 sections 4.1 and 5.1: time exceeded, to client and pod."""
    reference = both()
    there = send(reference, frame(udp(CLIENT4, "90.0.0.1", 7, 80)))
    back = send(reference, reply_to(there.data, ttl=1), interface=INSIDE)
    assert back[:2] == (Outcome.TRANSMIT, Reason.TIME_EXCEEDED_SENT)
    assert reference.counters[Node.NAT46_IN2OUT, Reason.TTL_EXPIRED] == 1


def test_every_flow_has_its_own_source_until_none_is_left():
    """A live port is never given away; with none left, new flows are refused and counted."""
    reference = both(nat64_pool=IPv4Network("192.0.0.4/31"), nat64_ports=(2000, 2003))
    sources = set()
    for port in range(1, 9):
        result = send(reference, frame(udp(CLIENT6, "9000::1", port, 80)))
        assert result.outcome == Outcome.TRANSMIT
        sources.add((addresses(result.data)[0], l4_of(result.data)[:2]))
    assert len(sources) == 8
    data = frame(udp(CLIENT6, "9000::1", 9, 80))
    assert verdict(reference, data) == (Outcome.DROP, Reason.PORTS_EXHAUSTED)
    assert verdict(reference, frame(tcp(CLIENT6, "9000::1", 9, 80)))[0] == Outcome.TRANSMIT  # another protocol
    assert verdict(reference, data, now=400)[0] == Outcome.TRANSMIT  # the others are over


def test_full_bucket_refuses_what_cannot_do_without_an_entry():
    reference = both(buckets=1)
    for port in range(1, 5):
        assert verdict(reference, frame(udp(CLIENT4, "90.0.0.1", port, 80)))[0] == Outcome.TRANSMIT
    data = frame(udp(CLIENT4, "90.0.0.1", 5, 80))
    assert verdict(reference, data) == (Outcome.DROP, Reason.FLOW_TABLE_FULL)


def test_no_place_for_the_pieces():
    """The pieces wait in the hold area's places until the vector has gone."""
    reference = both()
    long = udp(CLIENT4, "90.0.0.1", 7, 80, bytes(60_000))
    results = reference.receive([RefPacket(frame(long)), RefPacket(frame(long))], 0)
    assert results[1][:2] == (Outcome.DROP, Reason.FRAGMENT_HOLD_FULL)
    assert len(results) == 2 + 48


def test_in_the_pool_or_prefix_but_nobodys():
    reference = both()
    data = frame(udp(POD4, "192.0.0.1", 80, 7))
    assert verdict(reference, data, interface=INSIDE) == (Outcome.PASS, Reason.NO_TRANSLATION)
    data = frame(replace(udp(POD6, MAPPED, 80, 7)))
    assert verdict(reference, data, interface=INSIDE) == (Outcome.PASS, Reason.NO_TRANSLATION)


# ---------------------------------------------------------------------------------------------------- ICMP errors

TO_6 = [
    (3, 0, 0, (1, 0, 0)),
    (3, 1, 0, (1, 0, 0)),
    (3, 2, 0, (4, 1, 6)),
    (3, 3, 0, (1, 4, 0)),
    (3, 4, 1400, (2, 0, 1420)),
    (3, 4, 500, (2, 0, 1280)),
    (3, 4, 0, (2, 0, 1280)),  # RFC 1191's plateau below 33 bytes, raised to IPv6's least
    (3, 9, 0, (1, 1, 0)),
    (3, 13, 0, (1, 1, 0)),
    (3, 14, 0, None),
    (4, 0, 0, None),
    (5, 0, 0, None),
    (11, 0, 0, (3, 0, 0)),
    (11, 1, 0, (3, 1, 0)),
    (12, 0, 8 << 24, (4, 0, 7)),
    (12, 0, 10 << 24, None),
    (12, 1, 0, None),
]
TO_4 = [
    (1, 0, 0, (3, 1, 0)),
    (1, 1, 0, (3, 10, 0)),
    (1, 4, 0, (3, 3, 0)),
    (1, 5, 0, None),
    (2, 0, 1400, (3, 4, 1380)),
    (3, 0, 0, (11, 0, 0)),
    (3, 1, 0, (11, 1, 0)),
    (4, 0, 7, (12, 0, 8 << 24)),
    (4, 0, 2, None),
    (4, 1, 6, (3, 2, 0)),
    (4, 2, 0, None),
]


def complain(reference, about, kind, code, rest, router=None):
    """The router's (or the receiver's) error about a frame that was sent to it."""
    source, destination = addresses(about)
    body = struct.pack(">I", rest) + about[14:][:100]
    origin = destination if router is None else router
    return send(reference, frame(packets.icmp(origin, source, kind, code, body)), interface=INSIDE)


@pytest.mark.parametrize(("kind", "code", "rest", "expected"), TO_6)
def test_icmp_errors_become_icmp6(kind, code, rest, expected):
    """RFC 7915 section 4.2, towards the client of a NAT64; the embedded packet is the one that it sent (4.3)."""
    reference = both()
    sent = udp(CLIENT6, "9000::1", 7000, 80)
    there = send(reference, frame(sent, flow_label=0))
    result = complain(reference, there.data, kind, code, rest, router="50.0.0.1")
    if expected is None:
        assert result[:2] == (Outcome.DROP, Reason.UNTRANSLATABLE_ICMP)
        return
    assert result[:2] == (Outcome.TRANSMIT, Reason.ICMP_ERROR_TRANSLATED)
    assert addresses(result.data) == (ip_address("64:ff9b:1::3200:1"), ip_address(CLIENT6))
    message = l4_of(result.data)
    assert struct.unpack(">BB2xI", message[:8]) == expected
    assert message[8:] == ip_packet(sent, flow_label=0, ttl=63)  # as it came to the router: one hop on
    assert verify_checksums(result.data) == []


@pytest.mark.parametrize(("kind", "code", "rest", "expected"), TO_4)
def test_icmp6_errors_become_icmp(kind, code, rest, expected):
    """RFC 7915 section 5.2, to the client of a NAT46; a router without an IPv4 address speaks as us (RFC 6791)."""
    reference = both(own_addresses={4: ip_address("40.0.0.254")})
    sent = udp(CLIENT4, "90.0.0.1", 7000, 80)
    there = send(reference, frame(sent))
    result = complain(reference, there.data, kind, code, rest, router="5000::1")
    if expected is None:
        assert result[:2] == (Outcome.DROP, Reason.UNTRANSLATABLE_ICMP)
        return
    assert result[:2] == (Outcome.TRANSMIT, Reason.ICMP_ERROR_TRANSLATED)
    assert addresses(result.data) == (ip_address("40.0.0.254"), ip_address(CLIENT4))
    message = l4_of(result.data)
    assert struct.unpack(">BB2xI", message[:8]) == expected
    assert message[8:] == ip_packet(sent, ttl=63, identification=0)
    assert verify_checksums(result.data) == []


@pytest.mark.parametrize(
    ("client", "address", "router", "kind", "code", "rest", "told"),
    [
        (CLIENT6, "9000::1", "50.0.0.1", 3, 4, 1400, 1400),
        (CLIENT6, "9000::1", "50.0.0.1", 3, 4, 1300, 1320),
        (CLIENT4, "90.0.0.1", "5000::1", 2, 0, 1500, 1380),
        (CLIENT4, "90.0.0.1", "5000::1", 2, 0, 1300, 1280),
    ],
)
def test_no_larger_mtu_is_told_than_our_links_have(client, address, router, kind, code, rest, told):
    """RFC 7915 sections 4.2 and 5.2: the least of the router's, adjusted, and the next hops'."""
    reference = both(translation_mtu=1400)
    there = send(reference, frame(udp(client, address, 7000, 80)))
    result = complain(reference, there.data, kind, code, rest, router=router)
    assert result[:2] == (Outcome.TRANSMIT, Reason.ICMP_ERROR_TRANSLATED)
    assert struct.unpack(">I", l4_of(result.data)[4:8]) == (told,)


@pytest.mark.parametrize(("client", "address"), [(CLIENT4, "90.0.0.1"), (CLIENT6, "9000::1")])
@pytest.mark.parametrize("build", [tcp, echo], ids=["tcp", "echo"])
def test_the_pods_own_error_comes_from_the_vip_and_the_clients_reaches_the_pod(client, address, build):
    reference = both()
    sent = build(client, address, 7000, 80) if build is tcp else echo(client, address, identifier=9)
    there = send(reference, frame(sent))
    unreachable = {4: (3, 3), 6: (1, 4)}
    result = complain(reference, there.data, *unreachable[addresses(there.data)[0].version], 0)
    assert result[:2] == (Outcome.TRANSMIT, Reason.ICMP_ERROR_TRANSLATED)
    assert addresses(result.data) == (ip_address(address), ip_address(client))
    assert l4_of(l4_of(result.data)[8:].rjust(len(result.data), b"\0")) is not None
    assert verify_checksums(result.data) == []
    back = send(reference, reply_to(there.data), interface=INSIDE)
    result = complain(reference, back.data, *unreachable[ip_address(client).version], 0)
    assert result[:2] == (Outcome.TRANSMIT, Reason.ICMP_ERROR_TRANSLATED)
    assert addresses(result.data) == addresses(there.data)
    assert verify_checksums(result.data) == []
