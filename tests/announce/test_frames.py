"""ARP and neighbour discovery: scapy reads what we write, and we read what scapy writes."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet6 import (
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6NDOptDstLLAddr,
    ICMPv6NDOptSrcLLAddr,
    IPv6,
)
from scapy.layers.l2 import ARP, Ether

from kuproxy.announce.frames import Heard, announcement, answer, parse, probe

OURS, THEIRS = "02:00:00:00:00:01", "02:00:00:00:00:02"
MAC, OTHER = bytes.fromhex(OURS.replace(":", "")), bytes.fromhex(THEIRS.replace(":", ""))
FOUR, SIX = ip_address("90.0.0.1"), ip_address("2001:db8::90:0:1")
ASKER4, ASKER6 = ip_address("90.0.0.77"), ip_address("fe80::77")


def test_arp() -> None:
    asked = Ether(probe(FOUR, MAC))
    assert asked.dst == "ff:ff:ff:ff:ff:ff" and len(asked) == 60
    assert (asked[ARP].op, asked[ARP].psrc, asked[ARP].pdst, asked[ARP].hwsrc) == (1, "0.0.0.0", str(FOUR), OURS)
    told = Ether(announcement(FOUR, MAC))
    assert told.dst == "ff:ff:ff:ff:ff:ff"
    assert (told[ARP].op, told[ARP].psrc, told[ARP].pdst, told[ARP].hwsrc) == (1, str(FOUR), str(FOUR), OURS)
    answered = Ether(answer(Heard(FOUR, OTHER, claims=False, asker=ASKER4), MAC))
    assert (answered.dst, answered[ARP].op, answered[ARP].psrc, answered[ARP].pdst, answered[ARP].hwdst) == (
        THEIRS, 2, str(FOUR), str(ASKER4), THEIRS,
    )  # fmt: skip


def test_neighbour_discovery() -> None:
    asked = Ether(probe(SIX, MAC))
    assert asked.dst == "33:33:ff:00:00:01"
    assert (asked[IPv6].src, asked[IPv6].dst, asked[IPv6].hlim) == ("::", "ff02::1:ff00:1", 255)
    assert asked[ICMPv6ND_NS].tgt == str(SIX)
    told = Ether(announcement(SIX, MAC))
    assert (told.dst, told[IPv6].src, told[IPv6].dst, told[IPv6].hlim) == (
        "33:33:00:00:00:01", str(SIX), "ff02::1", 255,
    )  # fmt: skip
    assert (told[ICMPv6ND_NA].R, told[ICMPv6ND_NA].S, told[ICMPv6ND_NA].O) == (0, 0, 1)
    assert told[ICMPv6NDOptDstLLAddr].lladdr == OURS
    answered = Ether(answer(Heard(SIX, OTHER, claims=False, asker=ASKER6), MAC))
    assert (answered.dst, answered[IPv6].dst) == (THEIRS, str(ASKER6))
    assert (answered[ICMPv6ND_NA].S, answered[ICMPv6ND_NA].O) == (1, 1)
    # Who probes has no address: everybody is told (RFC 4861 section 7.2.4).
    assert answer(Heard(SIX, OTHER, claims=False, probes=True), MAC) == announcement(SIX, MAC)
    for each in (asked, told, answered):
        right = each[IPv6].payload.cksum
        del each[IPv6].payload.cksum
        assert Ether(bytes(each))[IPv6].payload.cksum == right


@pytest.mark.parametrize(
    ("packet", "heard"),
    [
        (ARP(op=1, psrc="90.0.0.77", pdst="90.0.0.1", hwsrc=THEIRS), Heard(FOUR, OTHER, False, asker=ASKER4)),
        (ARP(op=1, psrc="0.0.0.0", pdst="90.0.0.1", hwsrc=THEIRS), Heard(FOUR, OTHER, False, probes=True)),
        (ARP(op=1, psrc="90.0.0.1", pdst="90.0.0.1", hwsrc=THEIRS), Heard(FOUR, OTHER, True)),
        (ARP(op=2, psrc="90.0.0.1", pdst="90.0.0.9", hwsrc=THEIRS), Heard(FOUR, OTHER, True)),
        (ARP(op=2, psrc="0.0.0.0", pdst="90.0.0.9", hwsrc=THEIRS), None),
        (ARP(op=3, psrc="90.0.0.1", hwsrc=THEIRS), None),
        (
            IPv6(src="fe80::77", dst="ff02::1:ff00:1", hlim=255) / ICMPv6ND_NS(tgt=str(SIX))
            / ICMPv6NDOptSrcLLAddr(lladdr=THEIRS),
            Heard(SIX, OTHER, False, asker=ASKER6),
        ),
        (
            IPv6(src="::", dst="ff02::1:ff00:1", hlim=255) / ICMPv6ND_NS(tgt=str(SIX)),
            Heard(SIX, OTHER, False, probes=True),
        ),
        (IPv6(src=str(SIX), dst="ff02::1", hlim=255) / ICMPv6ND_NA(tgt=str(SIX)), Heard(SIX, OTHER, True)),
        (IPv6(src=str(SIX), dst="ff02::1", hlim=254) / ICMPv6ND_NA(tgt=str(SIX)), None),
        (IPv6(src=str(SIX), dst="ff02::1", hlim=255) / ICMPv6ND_NA(tgt=str(SIX), cksum=1), None),
        (IPv6(src=str(SIX), dst="ff02::1", hlim=255) / ICMPv6ND_NA(tgt="ff02::1"), None),
    ],
)  # fmt: skip
def test_what_is_heard(packet: object, heard: Heard | None) -> None:
    assert parse(bytes(Ether(src=THEIRS, dst="ff:ff:ff:ff:ff:ff") / packet)) == heard


def test_our_own_words_are_understood() -> None:
    for address in (FOUR, SIX):
        assert parse(probe(address, OTHER)) == Heard(address, OTHER, False, probes=True)
        assert parse(announcement(address, OTHER)) == Heard(address, OTHER, True)


HEADS = [b"", b"\x08\x06\x00\x01\x08\x00\x06\x04", b"\x86\xdd\x60\0\0\0\0\x18:\xff"]


@given(st.binary(max_size=120), st.sampled_from(HEADS))
def test_nothing_that_comes_in_is_too_much(noise: bytes, head: bytes) -> None:
    """Any bytes are either something that is said about an address, or None."""
    frame = bytes(12) + head + noise
    heard = parse(frame)
    assert heard is None or len(heard.mac) == 6
