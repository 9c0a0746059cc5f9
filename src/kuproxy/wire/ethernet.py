"""Ethernet II with up to two VLAN tags (IEEE 802.1Q, 802.1ad)."""

from kuproxy.dataplane._jit import helper
from kuproxy.dataplane.memory import load16

HEADER = 14
TYPE = 12  # offset of the EtherType
TAG = 4  # bytes of a VLAN tag
MAX_TAGS = 2

# EtherTypes as a little-endian load of the field gives them.
IPV4_LE = 0x0008
IPV6_LE = 0xDD86
VLAN_LE = 0x0081
QINQ_LE = 0xA888


@helper
def network_offset(data, start, length):
    """(EtherType as loaded, offset of the network header from `start`); the type is -1 if the frame ends before."""
    offset = HEADER
    if length < offset:
        return -1, 0
    kind = load16(data, start + TYPE)
    for _ in range(MAX_TAGS):
        if kind != VLAN_LE and kind != QINQ_LE:
            break
        offset += TAG
        if length < offset:
            return -1, 0
        kind = load16(data, start + offset - 2)
    return kind, offset
