"""IPv6 (RFC 8200): field offsets, checks, and the walk over extension headers."""

from kuproxy.codes import Reason
from kuproxy.dataplane._jit import helper
from kuproxy.dataplane.memory import load16, swap16

HEADER = 40
PAYLOAD_LENGTH = 4
NEXT_HEADER = 6
HOP_LIMIT = 7
SOURCE = 8
DESTINATION = 24

HOP_BY_HOP = 0
ROUTING = 43
FRAGMENT = 44
DESTINATION_OPTIONS = 60
MAX_EXTENSIONS = 8

FRAGMENT_FIELD = 2  # offset, two reserved bits, more-fragments bit
FRAGMENT_IDENTIFICATION = 4


@helper
def check(data, l3, left):
    """Reason.NONE, or why the `left` bytes at `l3` are no IPv6 packet."""
    if left < HEADER:
        return Reason.TRUNCATED_IPV6.value
    if int(data[l3]) >> 4 != 6:
        return Reason.BAD_VERSION.value
    if swap16(load16(data, l3 + PAYLOAD_LENGTH)) > left - HEADER:
        return Reason.BAD_TOTAL_LENGTH.value
    return Reason.NONE.value


@helper
def skip_extensions(data, l3, end):
    """Walk the extension headers of the packet that ends at `end`.

    Returns (reason, protocol, offset of what follows, offset of the fragment header or 0 if the packet is whole).
    At a later fragment the walk ends: the next header is then the protocol.
    """
    protocol = int(data[l3 + NEXT_HEADER])
    offset = l3 + HEADER
    fragment = 0
    seen = 0
    while (
        protocol == HOP_BY_HOP
        or protocol == ROUTING
        or protocol == FRAGMENT
        or protocol == DESTINATION_OPTIONS
    ):
        seen += 1
        if seen > MAX_EXTENSIONS:
            return Reason.EXTENSION_HEADER_LIMIT.value, protocol, offset, fragment
        if end - offset < 8:
            return Reason.TRUNCATED_EXTENSION.value, protocol, offset, fragment
        following = int(data[offset])
        if protocol == FRAGMENT:
            field = swap16(load16(data, offset + FRAGMENT_FIELD))
            if field & 0xFFF9 != 0:  # offset or more fragments; neither: an atomic fragment (RFC 6946)
                fragment = offset
            if field & 0xFFF8 != 0:
                return Reason.NONE.value, following, offset + 8, fragment
            size = 8
        else:
            size = (int(data[offset + 1]) + 1) << 3
            if end - offset < size:
                return Reason.TRUNCATED_EXTENSION.value, protocol, offset, fragment
        offset += size
        protocol = following
    return Reason.NONE.value, protocol, offset, fragment
