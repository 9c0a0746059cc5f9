"""Where AF_XDP's packets lie, and who holds which piece of it at any time.

    Frame.data: [chunk 0 | chunk 1 | ... | slot 0 | slot 1 | ... | hold area]
                 `---------------- UMEM, known to the kernel ---'

The kernel writes a packet into a chunk, behind 256 bytes of headroom, and continues it in further chunks when it is
longer than one.  The graph wants a packet in one piece, with room behind it: such a packet is copied into a *slot*, 17
chunks in a row, of which the kernel never gets one to write into.  The hold area is not the kernel's; what is sent
from there is copied into free chunks first.

Chunks and slots are *units*, numbered together.  Each is at any time in exactly one place: free; a chunk to be
filled (fill ring and kernel); a chunk in the receive ring; held by the record of the frame that has its number
(`held`); or on its way out (transmit ring, kernel, completion ring).  `tests/drivers/test_af_xdp_units.py` holds the
kernels to that.
"""

from typing import NamedTuple

import numpy as np

from kuproxy.dataplane._jit import kernel
from kuproxy.dataplane.layout import FRAME_SIZE, HOLD_BYTES, HOLD_SLOTS
from kuproxy.dataplane.memory import acquire32, release32

__all__ = ["AfXdpRing", "Rings", "make_ring", "plain_rings"]

CHUNK_SHIFT = 12
CHUNK = 1 << CHUNK_SHIFT  # the greatest that the kernel allows, so that few packets are longer than one
KERNEL_HEADROOM = 256  # XDP_PACKET_HEADROOM
# 69,632 bytes: headroom, a 64 KiB packet, an answer's room.  On its way out a packet may have 18 (MAX_SKB_FRAGS + 1).
SLOT_CHUNKS = 17
SLOTS = 32
CHUNKS = 2048
# So many chunks are never given to be filled: a frame full of released fragments can always be sent.
RESERVE = HOLD_SLOTS * -(-HOLD_BYTES // CHUNK)
NONE = -1  # in `held`: that record holds nothing (any more)

# Words of AfXdpRing.words
R_FD = 0
R_INTERFACE = 1  # what PACKET["interface"] is set to
R_SET_MACS = 2  # 1: write `macs` into what is sent
R_UNFINISHED = 3  # 1: packets may come with partial checksums, and are to be completed
R_ZERO_COPY = 4  # 1: the device sends by itself, from our memory, when it gets to it
R_PRODUCER, R_CONSUMER, R_FLAGS = 5, 6, 7  # where a ring has them, in words of 32 bits from its beginning
R_FILL, R_RECEIVED, R_SENT, R_COMPLETED = 8, 9, 10, 11  # our index of each ring, 32 bits, wrapping
R_FREE = 12  # chunks in `free`
R_FREE_SLOTS = 13  # slots in `free_slots`
R_HELD = 14  # records of the frame that hold units
R_DROPPED_BEFORE = 15  # packets that the kernel dropped at another socket, in whose place this one is
R_WORDS = 16

MASK = 0xFFFFFFFF


class Rings(NamedTuple):
    """The four rings that are shared with the kernel: heads as uint32[n], descriptors as uint64."""

    fill: np.ndarray
    fill_descs: np.ndarray  # uint64[entries]: address
    receive: np.ndarray
    receive_descs: np.ndarray  # uint64[entries, 2]: address, then length | options << 32
    send: np.ndarray
    send_descs: np.ndarray  # as receive_descs
    complete: np.ndarray
    complete_descs: np.ndarray  # uint64[entries]: address


class AfXdpRing(NamedTuple):
    """All that the kernels need besides the frame."""

    shared: Rings
    free: np.ndarray  # int32[chunks]: a stack, so that what was used last is used next
    free_slots: np.ndarray  # int32[slots]
    pieces: np.ndarray  # int32[slots]: of the slot's packet on its way out, not completed yet
    held: np.ndarray  # int32[FRAME_SIZE]: unit of each record, or NONE
    words: np.ndarray  # int64[R_WORDS]
    stats: np.ndarray  # int64[S_WORDS] of af_xdp
    macs: np.ndarray  # uint8[12]: destination, source, as they lie in a packet
    poll: np.ndarray  # uint32[2]: struct pollfd
    reply: np.ndarray  # uint64[8]: struct xdp_statistics and its length


def make_ring(
    rings: Rings,
    places: tuple[int, int, int],
    *,
    chunks: int,
    slots: int,
    fd: int,
    interface: int,
    macs: bytes | None,
    unfinished: bool = False,
    zero_copy: bool = False,
) -> AfXdpRing:
    """A ring bundle whose units are all free. `places` of producer, consumer and flags as in `words`."""
    words = np.zeros(R_WORDS, np.int64)
    words[R_FD], words[R_INTERFACE], words[R_SET_MACS] = fd, interface, macs is not None
    words[R_UNFINISHED], words[R_ZERO_COPY] = unfinished, zero_copy
    words[[R_PRODUCER, R_CONSUMER, R_FLAGS]] = places
    words[R_FREE], words[R_FREE_SLOTS] = chunks, slots
    return AfXdpRing(
        rings,
        np.arange(chunks, dtype=np.int32)[::-1].copy(),
        np.arange(slots, dtype=np.int32)[::-1].copy(),
        np.zeros(slots, np.int32),
        np.full(FRAME_SIZE, NONE, np.int32),
        words,
        np.zeros(16, np.int64),
        np.frombuffer(bytearray(macs or bytes(12)), np.uint8),
        np.zeros(2, np.uint32),
        np.zeros(8, np.uint64),
    )


def plain_rings(entries: int) -> Rings:
    """Rings that are ordinary memory, for whoever plays the kernel; producer, consumer and flags are words 0, 1, 2."""
    heads = [np.zeros(4, np.uint32) for _ in range(4)]
    one, two = (entries,), (entries, 2)
    descs = [np.zeros(shape, np.uint64) for shape in (one, two, two, one)]
    return Rings(*(array for pair in zip(heads, descs, strict=True) for array in pair))


@kernel
def free_unit(ring, unit):
    """The unit is nobody's any more."""
    chunks = len(ring.free)
    if unit < chunks:
        ring.free[ring.words[R_FREE]] = unit
        ring.words[R_FREE] += 1
    else:
        ring.free_slots[ring.words[R_FREE_SLOTS]] = unit - chunks
        ring.words[R_FREE_SLOTS] += 1


@kernel
def release_held(ring):
    """Free what the frame's records still hold."""
    for i in range(ring.words[R_HELD]):
        if ring.held[i] != NONE:
            free_unit(ring, np.int64(ring.held[i]))
            ring.held[i] = NONE
    ring.words[R_HELD] = 0


@kernel
def reap(ring):
    """Free what the kernel has sent. Returns how many descriptors it completed."""
    words, chunks = ring.words, len(ring.free)
    entries = len(ring.shared.complete_descs)
    consumer = words[R_COMPLETED]
    done = np.int64(acquire32(ring.shared.complete, words[R_PRODUCER])) - consumer & MASK
    for k in range(done):
        chunk = np.int64(ring.shared.complete_descs[(consumer + k) & (entries - 1)]) >> CHUNK_SHIFT
        if chunk < chunks:
            free_unit(ring, chunk)
            continue
        slot = (chunk - chunks) // SLOT_CHUNKS
        ring.pieces[slot] -= 1
        if ring.pieces[slot] == 0:
            free_unit(ring, chunks + slot)
    words[R_COMPLETED] = consumer + done & MASK
    release32(ring.shared.complete, words[R_CONSUMER], words[R_COMPLETED])
    return done


@kernel
def refill(ring):
    """Give the kernel all free chunks to fill but the reserve."""
    words = ring.words
    entries = len(ring.shared.fill_descs)
    producer = words[R_FILL]
    room = entries - (producer - np.int64(acquire32(ring.shared.fill, words[R_CONSUMER])) & MASK)
    count = min(room, words[R_FREE] - RESERVE)
    if count <= 0:
        return
    for k in range(count):
        words[R_FREE] -= 1
        chunk = np.int64(ring.free[words[R_FREE]])
        ring.shared.fill_descs[(producer + k) & (entries - 1)] = np.uint64(chunk << CHUNK_SHIFT)
    words[R_FILL] = producer + count & MASK
    release32(ring.shared.fill, words[R_PRODUCER], words[R_FILL])
