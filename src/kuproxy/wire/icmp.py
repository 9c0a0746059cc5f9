"""ICMP (RFC 792) and ICMPv6 (RFC 4443): which messages are which."""

from kuproxy.codes import Protocol
from kuproxy.dataplane._jit import helper

TYPE = 0
CODE = 1
CHECKSUM = 2
BODY = 8  # header bytes before the embedded packet

IDENTIFIER = 4  # of an echo

ECHO_REQUEST4, ECHO_REPLY4 = 8, 0
ECHO_REQUEST6, ECHO_REPLY6 = 128, 129
TIME_EXCEEDED4, TIME_EXCEEDED6 = 11, 3
FRAGMENTATION_NEEDED4 = 4  # code of UNREACHABLE4
SOURCE_ROUTE_FAILED4 = 5
TOO_BIG6 = 2
PARAMETER_PROBLEM6 = 4
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


@helper
def is_echo(family, kind):
    """Echo request or reply of ICMP (family 4) or ICMPv6."""
    if family == 4:
        return kind == ECHO_REQUEST4 or kind == ECHO_REPLY4
    return kind == ECHO_REQUEST6 or kind == ECHO_REPLY6
