"""Where tayga 0.9.2 and we differ, and what decides. docs/translation.md says the same in words."""

from __future__ import annotations

import re
from dataclasses import dataclass


class Generated:
    """Equal to every identification that a translator may generate."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, int) and 0 <= other <= 0xFFFF

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return "generated"


@dataclass(frozen=True)
class Difference:
    """One field (`packets`: what came out at all) of all cases whose names match, ours and tayga's value of it."""

    cases: str
    field: str
    ours: object
    theirs: object
    decided_by: str

    def covers(self, name: str) -> bool:
        return re.fullmatch(self.cases, name) is not None


_TO_6, _TO_4 = "(to-pod6|from-pod4) ", "(from-pod6|to-pod4) "
# Packets that leave as one IPv4 packet of at most 1260 bytes; as a longer one; ICMPv6 errors that both translate.
_SMALL = (
    "tcp (syn|data|rst|damaged)|udp( empty)?|echo( empty)?|sctp|class .*|ttl (2|255)|flow label 0"
    "|size (1259|1260|1261|1279|1280)|extension (hop-by-hop|destination options|routing used up|three)"
)
_LARGE = "size (1281|1480|1481|1499|1500)|error about much"
_ERRORS = r"error ((1/[0124]|2/0|3/[01]|4/1) 0x\w+|about tcp)"
_ERRORS4 = f"({_TO_4}({_ERRORS})|from-pod6 error about echo)"

DIFFERENCES = [
    # --- what comes out at all
    Difference(
        _TO_6 + "gre",
        "packets",
        "nothing",
        "47 in ipv6",
        "RFC 7915 section 4.5 is tayga's, a stateless translator's; a stateful one (RFC 6146) knows TCP, UDP and ICMP",
    ),
    Difference(_TO_4 + "gre", "packets", "nothing", "47 in ipv4", "RFC 7915 section 5.5, as above"),
    Difference(
        _TO_6 + "udp without checksum",
        "packets",
        "udp in ipv6",
        "nothing",
        "RFC 7915 section 4.5: either; we compute",
    ),
    Difference(
        _TO_6 + "option (strict )?source route",
        "packets",
        "icmp 3/5",
        "udp in ipv6",
        "RFC 7915 section 4.1: ours",
    ),
    Difference(
        _TO_4 + "extension routing under way",
        "packets",
        "icmp6 4/0",
        "udp in ipv4",
        "RFC 7915 section 5.1: ours",
    ),
    Difference(
        _TO_6 + "error (12/2 0x0|12/0 0x(0|([12389c-f]|1[0-3])000000))",
        "packets",
        "icmp6 4/0",
        "nothing",
        "RFC 7915 section 4.2, figure 3: ours",
    ),
    Difference(
        _TO_4 + "error 4/0 0x([014-9a-f]|1.|2[0-7])",
        "packets",
        "icmp 12/0",
        "nothing",
        "RFC 7915 section 5.2, figure 6: ours",
    ),
    Difference(_TO_4 + "error 1/3 0x0", "packets", "icmp 3/1", "nothing", "RFC 7915 section 5.2: ours"),
    Difference(
        _TO_4 + "error by a router",
        "packets",
        "icmp 11/0",
        "nothing",
        "RFC 6791: a router without an IPv4 address speaks with one of the translator's",
    ),
    Difference(
        _TO_6 + "error about tcp, 8 bytes",
        "packets",
        "icmp6 1/4",
        "nothing",
        "RFC 792: an error embeds 64 bits of the data at least, which hold the ports",
    ),
    Difference(_TO_4 + "error about tcp, 8 bytes", "packets", "icmp 3/3", "nothing", "RFC 792, as above"),
    Difference(
        "to-pod6 error about echo",
        "packets",
        "icmp6 1/4",
        "nothing",
        "RFC 1122 section 3.2.2: only about errors there is none; an echo reply may have one",
    ),
    Difference(
        "to-pod4 error about echo", "packets", "icmp 3/3", "nothing", "RFC 1122 section 3.2.2, as above"
    ),
    # --- fields
    Difference(
        f"{_TO_4}({_SMALL})|{_ERRORS4}",
        "IP.flags",
        "",
        "DF",
        "RFC 7915 section 5.1: clear up to 1260 bytes, ours",
    ),
    Difference(
        f"{_TO_4}({_SMALL}|{_LARGE})|{_ERRORS4}",
        "IP.id",
        Generated(),
        0,
        "RFC 7915 section 5.1: from a generator, ours",
    ),
    Difference(_ERRORS4, "quoted IPerror.flags", "", "DF", "RFC 7915 section 5.3: as a packet's"),
    Difference(
        _TO_4 + "extension atomic fragment",
        "IP.id",
        Generated(),
        0xBEEF,
        "RFC 7915 section 5.1.1: tayga's; we take an atomic fragment (RFC 6946) for a whole packet in everything",
    ),
    Difference(
        _TO_6 + "(ttl 1|size (1481|1499|1500) df)",
        "IP.flags",
        "DF",
        "",
        "RFC 6864 section 4.1: identification 0, which both send, is for datagrams that are not fragmented; ours",
    ),
    Difference(
        _TO_4 + "error about much",
        "IP.len",
        1456,
        576,
        "RFC 7915 section 5.3: all that is embedded; RFC 1812 section 4.3.2.3 limits what a router originates",
    ),
]


def expected(name: str) -> dict[str, tuple[object, object]]:
    """What `tayga_compare.differences` must find in this case."""
    return {row.field: (row.ours, row.theirs) for row in DIFFERENCES if row.covers(name)}
