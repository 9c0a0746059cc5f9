"""The pcap format (draft-ietf-opsawg-pcap): a file header, then packets with a header each, without padding.

magic  major.minor  zone  accuracy  snaplen  link type      seconds  fraction  captured  original  data ...
  4       2  2        4      4         4         4              4        4         4         4
"""

import struct

import numpy as np

from kuproxy.dataplane._jit import kernel
from kuproxy.dataplane.memory import copy_bytes, load32, store32, swap32
from kuproxy.drivers.capture.problems import MAX_PACKET, Stop

MAGIC_US = 0xA1B2C3D4
MAGIC_NS = 0xA1B23C4D
MAGIC_KUZNETSOV = 0xA1B2CD34  # a patched libpcap of 1998 with longer packet headers
FILE_HEADER = 24
PACKET_HEADER = 16

ARRAY_FULL, END = int(Stop.ARRAY_FULL), int(Stop.END)
CUT_HEADER, CUT_PACKET, TOO_LONG = int(Stop.CUT_HEADER), int(Stop.CUT_PACKET), int(Stop.TOO_LONG)


def file_header(link_type: int = 1) -> bytes:
    """Header of a file that we write: little-endian, nanoseconds, version 2.4."""
    return struct.pack("<IHHiIII", MAGIC_NS, 2, 4, 0, 0, MAX_PACKET, link_type)


@kernel
def index_records(data, position, swapped, fraction_ns, packets):
    """Index the packets from data[position] on into `packets` (INDEX). Returns (position, count, Stop).

    `fraction_ns` is what the fraction counts: 1000 or 1.  `position` points at the record that stopped it.
    """
    end = len(data)
    n = 0
    while position < end:
        if n == len(packets):
            return position, n, ARRAY_FULL
        if position + PACKET_HEADER > end:
            return position, n, CUT_HEADER
        seconds = load32(data, position)
        fraction = load32(data, position + 4)
        captured = load32(data, position + 8)
        original = load32(data, position + 12)
        if swapped:
            seconds, fraction = swap32(seconds), swap32(fraction)
            captured, original = swap32(captured), swap32(original)
        if captured > MAX_PACKET:
            return position, n, TOO_LONG
        if position + PACKET_HEADER + captured > end:
            return position, n, CUT_PACKET
        p = packets[n]
        p["offset"] = position + PACKET_HEADER
        p["time_ns"] = np.int64(seconds) * 1_000_000_000 + np.int64(fraction) * fraction_ns
        p["captured"] = captured
        p["original"] = max(original, captured)  # some writers leave 0
        p["interface"] = 0
        p["has_vnet"] = 0
        n += 1
        position += PACKET_HEADER + captured
    return position, n, END


@kernel
def encode_record(buffer, position, data, start, length, original, time_ns):
    """Write one packet at buffer[position]. Returns the position behind it. Seconds wrap after 2106."""
    store32(buffer, position, time_ns // 1_000_000_000 & 0xFFFFFFFF)
    store32(buffer, position + 4, time_ns % 1_000_000_000)
    store32(buffer, position + 8, length)
    store32(buffer, position + 12, original)
    position += PACKET_HEADER
    copy_bytes(buffer, position, data, start, length)
    return position + length
