"""Finishing in software what a sender left to the device: a packet inside a tunnel is beyond a device's reach."""

import numpy as np

from kuproxy.codes import PacketFlag, Protocol
from kuproxy.dataplane._jit import kernel
from kuproxy.dataplane.checksum import fold, sum_bytes
from kuproxy.dataplane.memory import crc32c, load64, store16, store32
from kuproxy.wire import l4

_FRAGMENT = int(PacketFlag.FRAGMENT)
_CASTAGNOLI = np.uint64(0x82F63B78)  # reflected
_ONE = np.uint64(1)
_ONES = np.uint64(0xFFFFFFFF)


@kernel
def _sctp_crc(data, start, end):
    """CRC32C of RFC 9260 section 6.8 (initial value and result inverted) over data[start:end]."""
    crc = _ONES
    whole = (end - start) & ~7
    for offset in range(start, start + whole, 8):
        crc = crc32c(crc, load64(data, offset))
    for offset in range(start + whole, end):
        crc ^= np.uint64(data[offset])
        for _ in range(8):
            crc = (crc >> _ONE) ^ (_CASTAGNOLI if crc & _ONE else np.uint64(0))
    return crc ^ _ONES


@kernel
def complete_checksum(data, packet):
    """Turn a partial checksum (the pseudo-header's sum alone) into the whole one. Fragments never have one."""
    if np.int64(packet["flags"]) & _FRAGMENT:
        return
    l4_at = np.int64(packet["start"]) + np.int64(packet["l4"])
    end = np.int64(packet["start"]) + np.int64(packet["end"])
    protocol = np.int64(packet["protocol"])
    if protocol == Protocol.SCTP.value:
        store32(data, l4_at + l4.SCTP_CHECKSUM, 0)
        store32(data, l4_at + l4.SCTP_CHECKSUM, np.int64(_sctp_crc(data, l4_at, end)))
        return
    offset = l4.checksum_offset(np.int64(packet["family"]), protocol)
    if offset == 0 or l4_at + offset + 2 > end:
        return
    # The field itself holds the pseudo-header's sum, so it is summed with the rest.
    checksum = fold(sum_bytes(data, l4_at, end - l4_at)) ^ 0xFFFF
    if checksum == 0 and (protocol == Protocol.UDP.value or protocol == l4.UDP_LITE):
        checksum = 0xFFFF
    store16(data, l4_at + offset, checksum)
