"""Checksums that were left to a network card: found without a hint, completed; everything else stays as it is."""

from __future__ import annotations

import random
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrFragment
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Raw

import packets
from kuproxy.drivers._partial import complete_partial

# With addresses, or scapy would ask the network for them.
ETHER = Ether(dst="02:00:00:00:00:01", src="02:00:00:00:00:02")
FOUR, SIX = IP(src="10.0.0.1", dst="192.0.2.200"), IPv6(src="fd00::1", dst="2001:db8::2")


def whole_and_partial(ip: object, l4: object, data: bytes, ethernet: object = None) -> tuple[bytes, bytes]:
    """The packet as its receiver should see it, and as its sender leaves it to the card."""
    whole = bytes((ethernet or ETHER) / ip / l4 / Raw(data))
    transport = bytes(l4 / Raw(data))
    header = len(whole) - len(transport)
    if ip.version == 4:
        addresses = whole[header - 8 : header]
    else:
        at = len(bytes(ethernet or ETHER))
        addresses = whole[at + 8 : at + 40]
    protocol = 6 if l4.name == "TCP" else 17
    total = sum(struct.unpack(f">{len(addresses) // 2}H", addresses)) + len(transport) + protocol
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    at = header + (16 if protocol == 6 else 6)
    return whole, whole[:at] + struct.pack(">H", total) + whole[at + 2 :]


def completed(packet: bytes) -> bytes | None:
    """What becomes of it; None if nothing."""
    data = np.frombuffer(b"\xaa" * 7 + packet + b"\xbb" * 9, np.uint8).copy()
    changed = complete_partial(data, 7, len(packet))
    assert data[:7].tobytes() == b"\xaa" * 7 and data[-9:].tobytes() == b"\xbb" * 9
    result = data[7:-9].tobytes()
    assert changed == (result != packet)
    return result if changed else None


@pytest.mark.parametrize("ip", [FOUR, SIX, SIX / IPv6ExtHdrDestOpt()], ids=["IPv4", "IPv6", "IPv6 options"])
@pytest.mark.parametrize("l4", [TCP(dport=80), UDP(dport=53)], ids=["TCP", "UDP"])
@pytest.mark.parametrize("ethernet", [ETHER, ETHER / Dot1Q(vlan=5)], ids=["plain", "VLAN"])
def test_partial_checksums_become_whole(ip: object, l4: object, ethernet: object) -> None:
    for length in (0, 1, 2, 100, 1399):
        whole, partial = whole_and_partial(ip, l4, random.Random(length).randbytes(length), ethernet)
        assert completed(partial) == whole
        assert completed(whole) is None, "it is whole already"
        padded = partial + bytes(20)  # a short frame's padding is no part of the packet
        assert completed(padded) == whole + bytes(20)


def test_udp_never_becomes_a_packet_without_checksum() -> None:
    """A sum of 0 is sent as 0xffff (RFC 768)."""
    whole, partial = whole_and_partial(FOUR, UDP(sport=1, dport=2), b"\0\0")
    (checksum,) = struct.unpack_from(">H", whole, 40)
    data = struct.pack(">H", checksum)  # whatever the sum lacks
    whole, partial = whole_and_partial(FOUR, UDP(sport=1, dport=2), data)
    assert whole[40:42] == b"\xff\xff"
    assert completed(partial) == whole


def test_wrong_and_missing_ones_stay() -> None:
    whole, partial = whole_and_partial(FOUR, UDP(dport=53), b"some data")
    assert completed(whole[:-1] + b"X") is None, "damaged on its way"
    assert completed(whole[:40] + b"\0\0" + whole[42:]) is None, "without a checksum"
    fragment = bytes(
        ETHER / IP(src="10.0.0.1", dst="10.0.0.2", flags="MF") / UDP(dport=1, chksum=0x1234) / Raw(bytes(8))
    )
    assert completed(fragment) is None
    fragment = bytes(ETHER / SIX / IPv6ExtHdrFragment(m=1) / UDP(dport=1, chksum=0x1234) / Raw(bytes(8)))
    assert completed(fragment) is None
    assert completed(partial[:30]) is None, "cut"


def test_a_whole_sum_that_looks_partial_stays() -> None:
    """One in 65,536 packets has the pseudo-header's sum for its checksum by chance: choose the data so."""
    whole, partial = whole_and_partial(FOUR, UDP(sport=1, dport=2), b"\0\0")
    # Complement of the whole sum must be the pseudo-header's: the data make up the difference.
    (wanted,) = struct.unpack_from(">H", partial, 40)
    (have,) = struct.unpack_from(">H", whole, 40)
    difference = (have - wanted) % 0xFFFF
    chosen, _ = whole_and_partial(FOUR, UDP(sport=1, dport=2), struct.pack(">H", difference))
    assert chosen[40:42] == struct.pack(">H", wanted)
    assert completed(chosen) is None


def test_sctp() -> None:
    whole = packets.frame(packets.sctp("10.0.0.1", "10.0.0.2", 1000, 5060, b"five!"))
    blank = whole[:42] + bytes(4) + whole[46:]
    assert completed(blank) == whole
    assert completed(whole) is None


@given(st.binary(max_size=120))
def test_anything(noise: bytes) -> None:
    """Broken packets are left alone or completed, and never touched elsewhere."""
    completed(noise)
    completed(b"\x02\0\0\0\0\x01\x02\0\0\0\0\x02\x08\x00\x45" + noise)
    completed(b"\x02\0\0\0\0\x01\x02\0\0\0\0\x02\x86\xdd\x60" + noise)
