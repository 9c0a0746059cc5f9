"""Two lists of IP packets, compared header by header and field by field, as scapy reads them."""

from __future__ import annotations

import struct
from typing import Any

from packets import CLIENT_MAC, OUR_MAC, verify_checksums

# Each translator's checksums are recomputed; where other fields differ, they differ too and say nothing more.
_CHECKSUMS = {"chksum", "cksum"}


def differences(ours: list[bytes], theirs: list[bytes]) -> dict[str, tuple[object, object]]:
    """{field: (ours, theirs)} of what is not the same; `packets` where what came out is of another kind."""
    kinds = tuple(", ".join(kind(packet) for packet in each) or "nothing" for each in (ours, theirs))
    if kinds[0] != kinds[1]:
        return {"packets": kinds}  # type: ignore[dict-item]
    found = {}
    for one, other in zip(ours, theirs, strict=True):
        left, right = fields(one), fields(other)
        for name in {**left, **right}:
            if left.get(name) != right.get(name):
                found[name] = left.get(name), right.get(name)
    return found


def kind(packet: bytes) -> str:
    """A word for the packet: its protocol; an ICMP message's type and code."""
    from scapy.layers.inet import ICMP, IP
    from scapy.layers.inet6 import IPv6, IPv6ExtHdrFragment

    if packet[0] >> 4 == 4:
        read = IP(packet)
        if ICMP in read:
            return f"icmp {read[ICMP].type}/{read[ICMP].code}"
        return {6: "tcp", 17: "udp", 132: "sctp"}.get(read.proto, str(read.proto)) + " in ipv4"
    read = IPv6(packet)
    next_header = read[IPv6ExtHdrFragment].nh if IPv6ExtHdrFragment in read else read.nh
    if read.nh == 58:
        return f"icmp6 {packet[40]}/{packet[41]}"
    return {6: "tcp", 17: "udp", 132: "sctp"}.get(next_header, str(next_header)) + " in ipv6"


def fields(packet: bytes) -> dict[str, Any]:
    """Every header's fields, as `Layer.field`; those of an embedded packet with `quoted` before; and `checksums`."""
    from scapy.layers.inet import IP
    from scapy.layers.inet6 import IPv6
    from scapy.packet import NoPayload

    version = packet[0] >> 4
    ethertype = b"\x08\x00" if version == 4 else b"\x86\xdd"
    found: dict[str, Any] = {"checksums": verify_checksums(OUR_MAC + CLIENT_MAC + ethertype + packet)}
    layer, before = (IP if version == 4 else IPv6)(packet), ""
    while not isinstance(layer, NoPayload):
        name = type(layer).__name__
        if name in ("IPerror", "IPerror6"):
            before = "quoted "
        for field in layer.fields_desc:
            # The checksum of a quoted TCP or UDP header is compared: nobody recomputes it from a part.
            if field.name not in _CHECKSUMS or name in ("TCPerror", "UDPerror"):
                found[f"{before}{name}.{field.name}"] = plain(layer.getfieldval(field.name))
        if name == "IPerror":
            found["quoted header checksum"] = _sums_up(bytes(layer)[: layer.ihl * 4])
        layer = layer.payload
    return found


def plain(value: Any) -> Any:
    return str(value) if not isinstance(value, int | bytes | type(None)) or isinstance(value, bool) else value


def _sums_up(header: bytes) -> bool:
    total = sum(struct.unpack(f">{len(header) // 2}H", header))
    return total % 0xFFFF == 0
