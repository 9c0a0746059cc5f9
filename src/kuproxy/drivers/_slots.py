"""Equal slots in frame.data, filled from an indexed run of packets: for `memory` and `capture`.

A slot is [HEADROOM | packet | room for an answer].  The headroom ends in the place of the virtio_net_hdr, so
that it lies directly before the Ethernet header, as in a packet ring.
"""

import numpy as np

from kuproxy.dataplane._jit import kernel
from kuproxy.dataplane.layout import (
    BATCH,
    HOLD_ROOM,
    META_COUNT,
    TICKS_PER_SECOND,
    VNET_BYTES,
    Frame,
    make_frame,
)
from kuproxy.dataplane.memory import copy_bytes
from kuproxy.drivers._records import describe, vnet_flags
from kuproxy.drivers.contract import ANSWER_ROOM, HEADROOM, MIN_ROOM

# Where a packet lies in its source. `interface` counts the source's own interfaces.
INDEX = np.dtype(
    [
        ("offset", "<u8"),
        ("time_ns", "<i8"),  # since the epoch, or whatever the source counts from
        ("captured", "<u4"),  # bytes at `offset`
        ("original", "<u4"),  # bytes on the wire: more than `captured` when the packet was cut
        ("interface", "<u4"),
        ("has_vnet", "<u4"),  # 1: a virtio_net_hdr lies at `offset` - VNET_BYTES
    ]
)
assert INDEX.itemsize == 32

LINE = 64
DEFAULT_SLOT = 2048
NS_PER_TICK = 1_000_000_000 // TICKS_PER_SECOND


def slot_bytes(largest: int) -> int:
    """Stride of slots that hold packets of up to `largest` bytes.

    An odd number of cache lines: with a power of two, the headers of all packets would compete for two of the
    64 sets of a first-level cache.
    """
    need = max(DEFAULT_SLOT, HEADROOM + max(MIN_ROOM, largest + ANSWER_ROOM))
    lines = -(-need // LINE)
    return (lines | 1) * LINE


def slot_frame(largest: int) -> tuple[Frame, int]:
    """A frame of BATCH slots for packets of up to `largest` bytes, and the slots' stride."""
    stride = slot_bytes(largest)
    return make_frame(np.zeros(BATCH * stride + HOLD_ROOM, np.uint8)), stride


@kernel
def load(source, index, cursor, window_ns, interface_map, stride, frame, times_ns, missing):
    """Copy packets index[cursor:] into the frame's slots, and describe them. Returns how many.

    The vector ends where a packet is `window_ns` or more away from the vector's first, or belongs to another
    tick: one `now` must be right for all.  times_ns (int64[FRAME_SIZE]) receives each packet's time, missing
    (int64[FRAME_SIZE]) the bytes that the wire had and the source has not.
    """
    data = frame.data
    n = 0
    first = np.int64(0)
    while n < BATCH and cursor + n < len(index):
        entry = index[cursor + n]
        time_ns = np.int64(entry["time_ns"])
        if n == 0:
            first = time_ns
        elif abs(time_ns - first) >= window_ns or time_ns // NS_PER_TICK != first // NS_PER_TICK:
            break
        offset = np.int64(entry["offset"])
        length = np.int64(entry["captured"])
        start = n * stride + HEADROOM
        vnet = start - VNET_BYTES
        flags = 0
        if entry["has_vnet"] != 0:
            copy_bytes(data, vnet, source, offset - VNET_BYTES, VNET_BYTES)
            flags = vnet_flags(data, vnet)
        copy_bytes(data, start, source, offset, length)
        interface = interface_map[np.int64(entry["interface"])]
        describe(frame.packets, n, start, length, stride - HEADROOM, interface, vnet, flags)
        times_ns[n] = time_ns
        missing[n] = np.int64(entry["original"]) - length
        n += 1
    frame.meta[META_COUNT] = n
    return n
