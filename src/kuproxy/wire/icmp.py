"""ICMP (RFC 792) and ICMPv6 (RFC 4443): which messages are which."""

from kuproxy.codes import Protocol
from kuproxy.dataplane._jit import helper

TYPE = 0
CODE = 1
CHECKSUM = 2
BODY = 8  # header bytes before the embedded packet

ECHO_REQUEST4 = 8
ECHO_REQUEST6 = 128
UNREACHABLE4, PORT_UNREACHABLE4 = 3, 3
UNREACHABLE6, PORT_UNREACHABLE6 = 1, 4


@helper
def is_error(family, protocol, kind):
    """Messages about another packet: IPv4 types 3, 4, 5, 11, 12; IPv6 types below 128."""
    if family == 4:
        return protocol == Protocol.ICMP.value and (
            kind == 3 or kind == 4 or kind == 5 or kind == 11 or kind == 12
        )
    return protocol == Protocol.ICMP6.value and kind < 128


@helper
def is_link_local_control(family, protocol, kind):
    """Multicast listener and neighbour discovery (RFC 2710, 4861): never translated."""
    return family == 6 and protocol == Protocol.ICMP6.value and kind >= 130 and kind <= 137
