"""Rewriting and its checksums, judged by scapy, and by the difference that a damaged packet must keep."""

import struct
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

import packets
from kuproxy.reference import Packet, parse, rewrite
from kuproxy.reference.checksum import changed, complete, fold
from packets import SAMPLES, frame, udp, verify_checksums

NEW = {4: ip_address("10.0.0.1"), 6: ip_address("2001::2")}


def parsed(data, **how):
    packet = Packet(bytearray(data), **how)
    parse(packet)
    return packet


def to_pod(data, port=8080, **how):
    packet = parsed(data, **how)
    rewrite.set_destination(packet, NEW[packet.family], port)
    rewrite.decrement_ttl(packet)
    return bytes(packet.data)


WHOLE = [name for name in SAMPLES if "sctp-first-fragment" not in name]


@pytest.mark.parametrize("name", WHOLE)
def test_destination(name):
    before, after = parsed(SAMPLES[name]), parsed(to_pod(SAMPLES[name]))
    assert verify_checksums(bytes(after.data)) == []
    assert after.destination == NEW[before.family]
    assert after.destination_port == (8080 if before.has_ports and not before.is_later_fragment else 0)
    assert (after.source, after.source_port, after.ttl) == (before.source, before.source_port, before.ttl - 1)


@pytest.mark.parametrize("name", WHOLE)
def test_source(name):
    packet = parsed(SAMPLES[name])
    rewrite.set_source(packet, NEW[packet.family], 80)
    assert verify_checksums(bytes(packet.data)) == []
    after = parsed(packet.data)
    assert after.source == NEW[packet.family]
    if after.has_ports and not after.is_later_fragment:
        assert after.source_port == 80


@pytest.mark.parametrize("name", WHOLE)
def test_only_headers_change(name):
    """There and back again: every byte is as it was, but for the two zeros that a checksum may have."""
    packet = parsed(SAMPLES[name])
    address, port = packet.destination, packet.destination_port
    rewrite.set_destination(packet, NEW[packet.family], 8080)
    rewrite.set_destination(packet, address, port)
    assert bytes(packet.data) == SAMPLES[name]


def test_udp_without_checksum_stays_without():
    """RFC 768: zero means none; RFC 8200 section 8.1: in IPv6 there is no such thing, and we do not make one."""
    assert to_pod(SAMPLES["ip4-udp-no-checksum"])[40:42] == bytes(2)
    six = frame(udp("4000::1", "9000::1", 10001, 53, no_checksum=True))
    assert to_pod(six)[60:62] == bytes(2)  # illegal, and stays so


@pytest.mark.parametrize("version", [4, 6])
def test_udp_checksum_that_becomes_zero_is_sent_as_ones(version):
    """RFC 768, and RFC 8200 section 8.1."""
    source = "40.0.0.1" if version == 4 else "4000::1"
    target = packets.udp_with_checksum(source, str(NEW[version]), 10001, 8080, 0xFFFF)
    to_vip = udp(source, "90.0.0.1" if version == 4 else "9000::1", 10001, 53, target.payload[8:])
    sent = to_pod(frame(to_vip))
    at = 40 if version == 4 else 60
    assert sent[at : at + 2] == b"\xff\xff"
    assert verify_checksums(sent) == []


def test_tcp_checksum_may_be_zero():
    for word in range(65536):
        datagram = packets.tcp("40.0.0.1", "10.0.0.1", 10001, 8080, struct.pack(">H", word))
        if datagram.payload[16:18] == bytes(2):
            break
    sent = to_pod(frame(packets.tcp("40.0.0.1", "90.0.0.1", 10001, 80, struct.pack(">H", word))))
    assert sent[50:52] == bytes(2)
    assert verify_checksums(sent) == []


@given(
    st.integers(1, 0xFFFE),
    st.sampled_from(["ip4-tcp-data", "ip6-tcp-data", "ip4-udp", "ip6-udp", "ip6-echo-request"]),
)
def test_wrong_checksum_stays_wrong_by_the_same_difference(error, name):
    packet = parsed(SAMPLES[name])
    at = packet.l4 + {6: 16, 17: 6, 58: 2}[packet.protocol]
    damaged = bytearray(SAMPLES[name])
    damaged[at : at + 2] = struct.pack(">H", (packet.word(at) + error) % 0xFFFF or 0xFFFF)
    good, bad = to_pod(SAMPLES[name]), to_pod(bytes(damaged))
    difference = struct.unpack_from(">H", bad, at)[0] - struct.unpack_from(">H", good, at)[0]
    assert difference % 0xFFFF == error
    assert verify_checksums(bad) != []


@given(st.integers(0, 11 * 8 - 1), st.binary(min_size=0, max_size=40))
def test_damaged_sctp_stays_damaged(bit, chunks):
    data = frame(packets.sctp("40.0.0.1", "90.0.0.1", 10001, 80, chunks))
    damaged = bytearray(data)
    damaged[34 + bit // 8] ^= 1 << bit % 8
    if damaged[36:38] != data[36:38]:
        return  # another port: another rewrite
    assert verify_checksums(to_pod(data)) == []
    assert verify_checksums(to_pod(bytes(damaged))) != []


def test_sctp_crc_does_not_cover_padding():
    data = frame(packets.sctp("40.0.0.1", "90.0.0.1", 10001, 80, b""), pad_to=60)
    assert verify_checksums(to_pod(data)) == []


@pytest.mark.parametrize("build", [packets.tcp, packets.udp])
@pytest.mark.parametrize(("source", "destination"), [("40.0.0.1", "90.0.0.1"), ("4000::1", "9000::1")])
def test_partial_checksum(build, source, destination):
    """What the sender would have written for the pod: the sum of the pseudo-header, without ports, not inverted."""
    new = NEW[ip_address(source).version]
    sent = to_pod(frame(build(source, destination, 10001, 80, partial=True)), partial_checksum=True)
    expected = frame(build(source, str(new), 10001, 8080, partial=True), ttl=63)
    assert sent == expected


def test_partial_sctp_is_left_to_whoever_completes_it():
    data = bytearray(frame(packets.sctp("40.0.0.1", "90.0.0.1", 10001, 80)))
    data[42:46] = bytes(4)
    sent = to_pod(bytes(data), partial_checksum=True)
    assert (sent[36:38], sent[42:46]) == (struct.pack(">H", 8080), bytes(4))


def test_sctp_fragment():
    packet = parsed(SAMPLES["ip4-sctp-first-fragment"])
    with pytest.raises(rewrite.SctpFragment):
        rewrite.set_destination(packet, NEW[4], 8080)
    assert bytes(packet.data) == SAMPLES["ip4-sctp-first-fragment"]
    rewrite.set_destination(packet, NEW[4], 80)  # the same port: the CRC stays
    assert packet.data[34:] == SAMPLES["ip4-sctp-first-fragment"][34:]
    assert verify_checksums(bytes(packet.data)) == []


def test_short_other_protocols():
    for length in range(8):
        data = frame(packets.other("40.0.0.1", "90.0.0.1", packets.UDP_LITE, b"\xab" * length))
        expected = frame(packets.other("40.0.0.1", "10.0.0.1", packets.UDP_LITE, b"\xab" * length), ttl=63)
        sent = to_pod(data)
        assert sent[:34] == expected[:34]
        assert sent[34:40] == data[34:40]


def test_rfc_1624_example():
    """RFC 1624 section 4: the case that equation 4 of RFC 1141 gets wrong."""
    assert changed(0xDD2F, b"\x55\x55", b"\x32\x85") == 0x0000


@given(st.binary(min_size=20, max_size=20), st.binary(min_size=4, max_size=4))
def test_incremental_equals_complete(header, new):
    after = header[:12] + new + header[16:]
    incremental = changed(complete(header), header[12:16], new)
    assert fold(incremental) % 0xFFFF == complete(after) % 0xFFFF
