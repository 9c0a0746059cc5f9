"""Writing packet records: the part of `receive` that all drivers share."""

import numpy as np

from kuproxy.codes import PacketFlag
from kuproxy.dataplane._jit import kernel
from kuproxy.dataplane.layout import PACKET, VNET_BYTES
from kuproxy.dataplane.memory import crc32c, crc32c_byte, load16, load64, store32

VNET = int(PacketFlag.VNET)
PARTIAL_CHECKSUM = int(PacketFlag.PARTIAL_CHECKSUM)
GSO = int(PacketFlag.GSO)

# struct virtio_net_hdr (virtio 1.2, 5.1.6): flags, gso_type, hdr_len, gso_size, csum_start, csum_offset
NEEDS_CHECKSUM = 1  # VIRTIO_NET_HDR_F_NEEDS_CSUM
GSO_TYPE = 0x7F  # bit 7 is GSO_ECN: a bit beside the type, no type of its own
CHECKSUM_START = 6
CHECKSUM_OFFSET = 8
assert VNET_BYTES == 10

SCTP_CHECKSUM = 8

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
def fill_in_crc32c(data, first, end):
    """Write the checksum of the SCTP packet at data[first:end] (RFC 9260 section 6.8)."""
    store32(data, first + SCTP_CHECKSUM, 0)
    state = np.uint64(0xFFFFFFFF)
    position = first
    while position + 8 <= end:
        state = crc32c(state, load64(data, position))
        position += 8
    while position < end:
        state = crc32c_byte(state, np.int64(data[position]))
        position += 1
    store32(data, first + SCTP_CHECKSUM, np.int64(state) ^ 0xFFFFFFFF)


@kernel
def complete_sctp(data, vnet, start, length):
    """Fill in the CRC32C that an SCTP sender has left to the hardware, and say so in the header.

    A virtio_net_hdr cannot tell CRC32C from the Internet checksum: handed back to the kernel as it came, the packet
    would get a 16-bit sum in its place. SCTP is recognised by where its checksum lies, at offset 8 (RFC 9260 section
    3.1); TCP's lies at 16, UDP's at 6. Returns whether it was one.
    """
    if load16(data, vnet + CHECKSUM_OFFSET) != SCTP_CHECKSUM:
        return False
    first = start + load16(data, vnet + CHECKSUM_START)
    end = start + length
    if first + SCTP_CHECKSUM + 4 > end:
        return False
    fill_in_crc32c(data, first, end)
    data[vnet] = data[vnet] & np.uint8(0xFF ^ NEEDS_CHECKSUM)
    return True


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
