"""Writing packet records: the part of `receive` that all drivers share."""

import numpy as np

from kuproxy.codes import PacketFlag
from kuproxy.dataplane._jit import kernel
from kuproxy.dataplane.layout import PACKET, VNET_BYTES

VNET = int(PacketFlag.VNET)
PARTIAL_CHECKSUM = int(PacketFlag.PARTIAL_CHECKSUM)
GSO = int(PacketFlag.GSO)

# struct virtio_net_hdr (virtio 1.2, 5.1.6): flags, gso_type, hdr_len, gso_size, csum_start, csum_offset
NEEDS_CHECKSUM = 1  # VIRTIO_NET_HDR_F_NEEDS_CSUM
GSO_TYPE = 0x7F  # bit 7 is GSO_ECN: a bit beside the type, no type of its own
assert VNET_BYTES == 10

EMPTY = np.zeros(1, PACKET)  # copied whole, so that fields which the graph gains later are zeroed too


@kernel
def vnet_flags(data, vnet):
    """PacketFlag bits that the virtio_net_hdr at data[vnet] amounts to."""
    flags = VNET
    if data[vnet] & NEEDS_CHECKSUM:
        flags |= PARTIAL_CHECKSUM
    if data[vnet + 1] & GSO_TYPE:
        flags |= GSO
    return flags


@kernel
def describe(packets, i, start, length, room, interface, vnet, flags):
    """Set record `i` to a packet as received; everything that the graph will find out is zero."""
    packets[i] = EMPTY[0]
    p = packets[i]
    p["start"] = start
    p["vnet"] = vnet
    p["length"] = length
    p["room"] = room
    p["interface"] = interface
    p["flags"] = flags
