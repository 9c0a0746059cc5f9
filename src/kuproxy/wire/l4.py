"""Transport headers: TCP (RFC 9293), UDP (RFC 768), SCTP (RFC 9260), UDP-Lite (RFC 3828), DCCP (RFC 4340)."""

from kuproxy.codes import Protocol, Reason
from kuproxy.dataplane._jit import helper
from kuproxy.dataplane.memory import load8, load16, swap16

SOURCE_PORT = 0
DESTINATION_PORT = 2

TCP_HEADER = 20
TCP_SEQUENCE = 4
TCP_ACKNOWLEDGEMENT = 8
TCP_OFFSET = 12
TCP_FLAGS = 13
TCP_CHECKSUM = 16
TCP_FIN, TCP_SYN, TCP_RST, TCP_ACK = 0x01, 0x02, 0x04, 0x10

UDP_HEADER = 8
UDP_LENGTH = 4
UDP_CHECKSUM = 6

SCTP_HEADER = 12
SCTP_CHECKSUM = 8

ICMP_HEADER = 8
ICMP6_CHECKSUM = 2

UDP_LITE = 136
DCCP = 33


@helper
def has_ports(protocol):
    """TCP, UDP, SCTP: the protocols whose flows are told apart by ports."""
    return protocol == Protocol.TCP.value or protocol == Protocol.UDP.value or protocol == Protocol.SCTP.value


@helper
def check(data, l4, end, family, protocol, fragment):
    """Reason.NONE, or why the bytes from `l4` to `end` do not start with a whole header of `protocol`."""
    left = end - l4
    needed = 0
    if protocol == Protocol.TCP.value:
        needed = TCP_HEADER
    elif protocol == Protocol.UDP.value:
        needed = UDP_HEADER
    elif protocol == Protocol.SCTP.value:
        needed = SCTP_HEADER
    elif (protocol == Protocol.ICMP.value and family == 4) or (
        protocol == Protocol.ICMP6.value and family == 6
    ):
        needed = ICMP_HEADER
    if left < needed:
        return Reason.FRAGMENT_FIRST_TOO_SHORT.value if fragment else Reason.TRUNCATED_L4.value
    if protocol == Protocol.TCP.value:
        size = (load8(data, l4 + TCP_OFFSET) >> 4) << 2
        if size < TCP_HEADER or size > left:
            return Reason.BAD_L4_LENGTH.value
    elif protocol == Protocol.UDP.value:
        size = swap16(load16(data, l4 + UDP_LENGTH))
        if size < UDP_HEADER or (size > left and not fragment):
            return Reason.BAD_L4_LENGTH.value
    return Reason.NONE.value


@helper
def checksum_offset(family, protocol):
    """Offset from the L4 header of a checksum that covers the IP addresses, or 0 where there is none."""
    if protocol == Protocol.TCP.value:
        return TCP_CHECKSUM
    if protocol == Protocol.UDP.value or protocol == UDP_LITE or protocol == DCCP:
        return UDP_CHECKSUM
    if protocol == Protocol.ICMP6.value and family == 6:
        return ICMP6_CHECKSUM
    return 0
