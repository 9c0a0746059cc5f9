"""Direct return: outer headers, what stays as it was, and who is refused. Scapy is the oracle of the headers."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import GRE, Ether

import packets
from kuproxy.codes import Node, Outcome, PodCounter, Reason, VipCounter
from kuproxy.errors import ConfigError
from kuproxy.reference import Reference, Result
from reference.worlds import send, verdict, vip, world

SOURCES = {"ip4_src_address": ip_address("192.0.2.1"), "ip6_src_address": ip_address("2001:db8::1")}
VIPS = {4: "90.0.0.1/32", 6: "9000::1/128"}
PODS = {4: "10.0.0.1", 6: "2001::2"}
CLIENTS = {4: "40.0.0.1", 6: "4000::1"}
WORDS = ["gre4", "gre6", "ipip4", "ipip6", "gue4", "gue6"]


def frame_of(version: int, **how: object) -> bytes:
    datagram = packets.tcp(CLIENTS[version], VIPS[version].partition("/")[0], 1024, 80, b"hello")
    return packets.frame(datagram, **how)  # type: ignore[arg-type]


def tunnelled(version: int, word: str, data: bytes, **how: object) -> tuple[Reference, Result]:
    reference = world(vip(VIPS[version], [PODS[int(word[-1])]], port=80, encap=word), **SOURCES)
    return reference, send(reference, data, **how)


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize("version", [4, 6])
def test_outer_headers(version: int, word: str) -> None:
    data = frame_of(version, vlan=(7,), pad_to=200)
    reference, result = tunnelled(version, word, data)
    assert result[:2] == (Outcome.TRANSMIT, Reason.ENCAPSULATED)
    assert packets.verify_checksums(result.data) == []
    inner = data[18 : 18 + len(IPv6(data[18:]) if version == 6 else IP(data[18:])) ]
    inner = inner[: 40 + 25 if version == 6 else 20 + 25]
    outer = Ether(result.data).payload.payload
    assert result.data[:16] == data[:16]
    family = int(word[-1])
    assert isinstance(outer, IP if family == 4 else IPv6)
    assert outer.src == str(SOURCES[f"ip{family}_src_address"]) and outer.dst == PODS[family]
    assert (outer.ttl if family == 4 else outer.hlim) == 64
    protocol = outer.proto if family == 4 else outer.nh
    inside = 4 if version == 4 else 41
    if word.startswith("gre"):  # RFC 2784
        assert protocol == 47
        assert isinstance(outer.payload, GRE) and outer.payload.proto == (0x0800 if version == 4 else 0x86DD)
        assert bytes(outer.payload)[4:] == inner
    elif word.startswith("ipip"):  # RFC 2003, 2473, 4213
        assert protocol == inside
        assert bytes(outer.payload) == inner
    else:  # draft-ietf-intarea-gue
        udp = outer.payload
        assert protocol == 17 and isinstance(udp, UDP) and udp.dport == 6080 and udp.sport >= 0xC000
        assert (udp.chksum == 0) == (family == 4)
        assert bytes(udp)[8:12] == bytes([0, inside, 0, 0])
        assert bytes(udp)[12:] == inner
    assert reference.counters[Node.BALANCE, Reason.FIRST_PACKET] == 1


def test_the_inner_packet_keeps_its_ttl_and_an_expired_one_stays_out() -> None:
    _, result = tunnelled(4, "ipip4", frame_of(4, ttl=2))
    assert result.data[34 + 8] == 2
    _, result = tunnelled(4, "ipip4", frame_of(4, ttl=1))
    assert result[:2] == (Outcome.DROP, Reason.TTL_EXPIRED)


def test_dont_fragment_and_traffic_class_are_copied() -> None:
    """RFC 2003 section 3.1; RFC 6040 section 4.1 for the two bits of ECN; RFC 6864 for the identification."""
    plain = bytearray(frame_of(4))
    plain[15] = 0xBB
    for flags, identification in ((b"\x40\x00", 0), (b"\0\0", 1)):
        plain[20:22] = flags
        plain[24:26] = bytes(2)
        plain[24:26] = packets.internet_checksum(bytes(plain[14:34])).to_bytes(2, "big")
        _, result = tunnelled(4, "gre4", bytes(plain))
        outer = Ether(result.data)[IP]
        assert (outer.tos, outer.id, bytes(outer)[6:8]) == (0xBB, identification, flags)


def test_a_partial_checksum_is_completed() -> None:
    """Behind us nobody looks for it inside a tunnel."""
    whole = frame_of(4)
    partial = bytearray(whole)
    pseudo = packets._pseudo_header(ip_address("40.0.0.1"), ip_address("90.0.0.1"), 6, 25)
    partial[50:52] = (0xFFFF - packets.internet_checksum(pseudo)).to_bytes(2, "big")
    _, result = tunnelled(4, "ipip4", bytes(partial), partial_checksum=True)
    assert result.data[34:] == whole[14:]
    assert not result.partial_checksum


def test_gso_frames_are_refused() -> None:
    _, result = tunnelled(4, "gue6", frame_of(4), gso=True)
    assert result[:2] == (Outcome.DROP, Reason.TUNNEL_GSO)


def test_what_would_be_too_long_is_refused() -> None:
    datagram = packets.udp(CLIENTS[4], "90.0.0.1", 1024, 80, bytes(65535 - 28))
    _, result = tunnelled(4, "gre4", packets.frame(datagram))
    assert result[:2] == (Outcome.DROP, Reason.TUNNEL_TOO_LONG)


@pytest.mark.parametrize("word", WORDS)
def test_without_a_source_address_nothing_goes(word: str) -> None:
    reference = world(vip(VIPS[4], [PODS[int(word[-1])]], encap=word))
    assert verdict(reference, frame_of(4)) == (Outcome.DROP, Reason.TUNNEL_NO_SOURCE)


@pytest.mark.parametrize("version", [4, 6])
def test_l3dsr_changes_destination_and_dscp_alone(version: int) -> None:
    """RFC 2474: six bits; RFC 3168: the other two stay."""
    reference = world(vip(VIPS[version], [PODS[version]], encap="l3dsr", dscp=46))
    data = bytearray(frame_of(version))
    if version == 4:
        data[15] = 0x07
        data[24:26] = bytes(2)
        data[24:26] = packets.internet_checksum(bytes(data[14:34])).to_bytes(2, "big")
    else:
        data[14:16] = b"\x60\x75"
    result = send(reference, bytes(data))
    assert result[:2] == (Outcome.TRANSMIT, Reason.FORWARDED)
    assert packets.verify_checksums(result.data) == []
    header = Ether(result.data).payload
    traffic_class = header.tos if version == 4 else header.tc
    assert (header.dst, traffic_class) == (PODS[version], 46 << 2 | 3)
    assert header.dport == 80


def test_a_flow_is_kept_and_needs_no_way_back() -> None:
    """Two clients' flows that would be one reply under NAT: direct return keeps the client's own words."""
    reference, first = tunnelled(4, "gre4", frame_of(4))
    assert send(reference, frame_of(4), now=10).reason is Reason.ENCAPSULATED
    assert reference.counters[Node.BALANCE, Reason.EXISTING_SESSION] == 1
    reply = packets.frame(packets.tcp("10.0.0.1", "40.0.0.1", 80, 1024))
    reference.mark_interface(1, True, True)
    assert verdict(reference, reply, now=10, interface=1) == (Outcome.PASS, Reason.NO_TRANSLATION)
    [key] = reference.vip_counters
    assert reference.vip_counters[key][VipCounter.TO_POD_BYTES] == 90
    [counts] = reference.pod_counters[key].values()
    assert counts == {PodCounter.FLOWS: 1, PodCounter.TO_POD_PACKETS: 2, PodCounter.TO_POD_BYTES: 90}
    assert first.pod == ip_address("10.0.0.1")


def test_counters_of_both_directions() -> None:
    reference = world(vip("90.0.0.1/32", ["10.0.0.1"], port=80, target_port=8080), inside=1)
    sent = send(reference, frame_of(4, pad_to=100)).data
    assert send(reference, packets.reply_to(sent), interface=1).reason is Reason.IN2OUT
    [(key, counters)] = reference.vip_counters.items()
    [counts] = reference.pod_counters[key].values()
    assert counters[VipCounter.TO_POD_BYTES] == counters[VipCounter.FROM_POD_BYTES] == 45
    assert counts[PodCounter.FROM_POD_PACKETS] == counters[VipCounter.FROM_POD_PACKETS] == 1


@pytest.mark.parametrize(
    ("how", "field"),
    [
        ({"encap": "gre4", "dscp": 3}, "dscp"),
        ({"encap": "l3dsr", "dscp": 64}, "dscp"),
        ({"encap": "gre4", "port": 80, "target_port": 8080}, "target_port"),
        ({"encap": "gue", "gue_port": 65536}, "gue_port"),
        ({"encap": "ipip", "gue_port": 1}, "gue_port"),
        ({"encap": "ipip", "node_port": 30000}, "node_port"),
    ],
)
def test_vips_that_cannot_be(how: dict[str, object], field: str) -> None:
    with pytest.raises(ConfigError) as error:
        vip("90.0.0.1/32", **how)  # type: ignore[arg-type]
    assert [problem.field for problem in error.value.problems] == [field]
