"""The steering decision in plain Python, from the bytes of a frame: slow, and obviously right.

It knows targets, not keys: what the programs find by several lookups is said here in one condition each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from kuproxy.steering.targets import Targets

PORTS = (6, 17, 132)
Address = IPv4Address | IPv6Address


ERRORS4 = (3, 4, 5, 11, 12)
ECHO_REQUEST = {4: 8, 6: 128}


@dataclass(frozen=True)
class Packet:
    source: Address
    destination: Address
    protocol: int
    source_port: int = 0
    destination_port: int = 0
    fragment: bool = False
    request: bool = False  # an echo request


def parse(frame: bytes) -> Packet | None:
    """What can be known of a frame; None when it is not a packet that anybody could steer."""
    kinds = {b"\x08\x00": 4, b"\x86\xdd": 6}
    kind = kinds.get(frame[12:14])
    return None if kind is None else parse_ip(frame[14:], kind)


def parse_ip(ip: bytes, family: int, embedded: bool = False) -> Packet | None:
    """A packet, or what an ICMP error embeds of one: there, fragments with ports are as good as whole packets."""
    if family == 4:
        if len(ip) < 20 or ip[0] >> 4 != 4 or ip[0] & 15 < 5:
            return None
        source, destination = IPv4Address(ip[12:16]), IPv4Address(ip[16:20])
        protocol, offset = ip[9], (ip[0] & 15) * 4
        fragment = int.from_bytes(ip[6:8], "big") & (0x1FFF if embedded else 0x3FFF) != 0
    else:
        if len(ip) < 40 or ip[0] >> 4 != 6:
            return None
        source, destination = IPv6Address(ip[8:24]), IPv6Address(ip[24:40])
        protocol, offset, fragment, skipped = ip[6], 40, False, 0
        while protocol in (0, 43, 44, 60) and not fragment:
            if skipped == 4 or len(ip) < offset + 8:
                return None
            extension = ip[offset : offset + 8]
            if protocol == 44:
                fragment = int.from_bytes(extension[2:4], "big") & (0xFFF8 if embedded else 0xFFF9) != 0
                offset += 8
            else:
                offset += 8 + extension[1] * 8
            protocol, skipped = extension[0], skipped + 1
    if embedded and (fragment or len(ip) < offset + 8):
        return None
    fragment = fragment or protocol == 255  # reserved by IANA: the programs' word for fragments
    if not fragment and not embedded and protocol == (1 if family == 4 else 58):
        return parse_icmp(source, destination, protocol, ip[offset:])
    if fragment or protocol not in PORTS:
        return Packet(source, destination, protocol, fragment=fragment)
    ports = ip[offset : offset + 4]
    if len(ports) < 4:
        return None
    return Packet(
        source,
        destination,
        protocol,
        int.from_bytes(ports[:2], "big"),
        int.from_bytes(ports[2:], "big"),
    )


def parse_icmp(source: Address, destination: Address, protocol: int, message: bytes) -> Packet | None:
    """An error is a packet of the other direction of the flow that it embeds a packet of."""
    family = source.version
    if not message or (family == 6 and 130 <= message[0] <= 137):
        return None
    if message[0] not in ERRORS4 if family == 4 else message[0] >= 128:
        return Packet(source, destination, protocol, request=message[0] == ECHO_REQUEST[family])
    about = parse_ip(message[8:], family, embedded=True)
    if about is None or about.source != destination:
        return None
    return Packet(
        about.destination,
        about.source,
        about.protocol,
        about.destination_port,
        about.source_port,
        about.fragment,
    )


def decide(
    frame: bytes,
    targets: Targets,
    node_addresses: frozenset[Address],
    interface: str,
    to_host: bool = True,
    is_place_of: Callable[[Packet, str], bool] | None = None,
) -> str:
    """`forward`, `return`, `refused` or `foreign`.

    `is_place_of`: is the pod that a packet is from behind that interface?
    """
    packet = parse(frame)
    if packet is None or not to_host:
        return "foreign"
    judged = targets.marks is None and targets.strict_replies and interface != "lo"
    in_place = not judged or is_place_of is None or is_place_of(packet, interface)
    if _is_forward(packet, targets, node_addresses):
        # A fragment in a pod's name may be the reply to something masqueraded: see `steer`.
        return "refused" if packet.fragment and _is_of_pod(packet, targets) and not in_place else "forward"
    mark = 1 if packet.source.version == 4 else 2
    if targets.marks is not None and not targets.marks.get(interface, 0) & mark:
        return "foreign"
    if not any(packet.destination in network for network in targets.translated) and not _is_of_pod(packet, targets):
        return "foreign"
    return "return" if in_place else "refused"


def _is_of_pod(packet: Packet, targets: Targets) -> bool:
    return not packet.request and any(
        address == packet.source and _matches(packet, packet.source_port, protocol, port)
        for address, protocol, port in targets.pods
    )


def _is_forward(packet: Packet, targets: Targets, node_addresses: frozenset[Address]) -> bool:
    for network, protocol, port in targets.vips:
        if packet.destination not in network:
            continue
        if network.num_addresses > 1 or _matches(packet, packet.destination_port, protocol, port):
            return True
    if packet.destination in node_addresses and targets.serves_at(packet.destination):
        for family, protocol, port in targets.node_ports:
            if family == packet.destination.version and _matches(
                packet, packet.destination_port, protocol, port
            ):
                return True
    return False


def _matches(packet: Packet, packet_port: int, protocol: int, port: int) -> bool:
    if packet.fragment:
        return True  # by address alone
    if port == 0:
        return protocol == 0 or protocol in PORTS or protocol == packet.protocol
    return packet.protocol in ((protocol,) if protocol else PORTS) and packet_port == port
