"""Live traffic of one queue of a Linux interface, taken by an XDP program before the kernel's stack sees it.

The program (not ours: `register` hands our socket to whoever has attached it) redirects packets into a socket of
family AF_XDP, whose memory, the UMEM, is shared with the kernel.  On a device whose driver can, packets are written
there by the hardware; on any other they are copied once.  `_xdp_umem` says who holds which piece of that memory.

No word comes with a packet about its checksum or about segments to be split, as the virtio_net_hdr of AF_PACKET has
it.  So this driver only opens where packets are whole, and completes checksums where they may be unfinished; see
`_xdp_socket.check_offloads`.  Records never have PacketFlag.VNET, nor may what is appended.

The kernels `receive`, `transmit`, `wait` and `kernel_drops` take an AfXdpRing and release the GIL.

Not done: hardware hints, VLAN tags that the interface has stripped.  Packets of more than 69,248 bytes are dropped and
counted.
"""

import socket
from collections.abc import Callable

import numpy as np

from kuproxy.codes import Outcome
from kuproxy.dataplane._jit import kernel
from kuproxy.dataplane.layout import BATCH, HEADROOM, META_COUNT, META_HOLD_BASE, make_frame
from kuproxy.dataplane.memory import acquire32, copy_bytes, release32
from kuproxy.drivers import _libc
from kuproxy.drivers._live import Kernels, LiveDriver, checked_macs
from kuproxy.drivers._partial import complete_partial
from kuproxy.drivers._records import describe
from kuproxy.drivers._xdp_socket import SOL_XDP, XDP_STATISTICS, XdpMode, XdpSocket
from kuproxy.drivers._xdp_umem import (
    CHUNK,
    CHUNK_SHIFT,
    CHUNKS,
    KERNEL_HEADROOM,
    MASK,
    NONE,
    R_CONSUMER,
    R_DROPPED_BEFORE,
    R_FD,
    R_FLAGS,
    R_FREE,
    R_FREE_SLOTS,
    R_HELD,
    R_INTERFACE,
    R_PRODUCER,
    R_RECEIVED,
    R_SENT,
    R_SET_MACS,
    R_UNFINISHED,
    R_ZERO_COPY,
    SLOT_CHUNKS,
    SLOTS,
    free_unit,
    make_ring,
    reap,
    refill,
    release_held,
)
from kuproxy.drivers.contract import ANSWER_ROOM, BROKEN, NOTHING, READY

__all__ = ["AfXdpDriver", "XdpMode", "kernel_drops", "receive", "transmit", "wait"]

# Words of AfXdpRing.stats
S_RECEIVED = 0  # packets handed to the graph
S_CUT = 1  # dropped: longer than a slot
S_NONSENSE = 2  # dropped: a descriptor that makes no sense
S_COPIED = 3  # packets that did not fit a chunk with room for an answer
S_COMPLETED = 4  # packets that came with a partial checksum
S_SENT = 5
S_FAILED = 6
S_RETRIES = 7
S_ERRNO = 8  # the last error in sending
S_KERNEL_DROPS = 9

STATISTICS = {
    "received": S_RECEIVED,
    "cut": S_CUT,
    "nonsense": S_NONSENSE,
    "copied": S_COPIED,
    "checksums_completed": S_COMPLETED,
    "sent": S_SENT,
    "failed": S_FAILED,
    "retries": S_RETRIES,
    "last_errno": S_ERRNO,
}

_TRANSMIT, _PASS = int(Outcome.TRANSMIT), int(Outcome.PASS)
_CONTINUED = 1  # XDP_PKT_CONTD among a descriptor's options: the packet goes on in the next one
_NEED_WAKEUP = 1  # XDP_RING_NEED_WAKEUP
ETHERNET_BYTES = 14
_SLOT_BYTES = SLOT_CHUNKS * CHUNK
_LONGEST = _SLOT_BYTES - KERNEL_HEADROOM - ANSWER_ROOM
# As with AF_PACKET: a vector must not wait for longer than this in all.
RETRIES = 4
RETRY_MS = 1
_CALLS = 64  # of sendto for one vector: copy mode takes 32 descriptors a call


@kernel
def _unit_bounds(ring, unit):
    """Where in Frame.data a unit begins and ends."""
    chunks = len(ring.free)
    if unit < chunks:
        return unit << CHUNK_SHIFT, (unit + 1) << CHUNK_SHIFT
    begin = (chunks << CHUNK_SHIFT) + (unit - chunks) * _SLOT_BYTES
    return begin, begin + _SLOT_BYTES


# ---------------------------------------------------------------------------------------------------- receive


@kernel
def _measure(ring, consumer, available):
    """(descriptors, bytes, whether all make sense) of the packet at `consumer`; (0, ...): its end is yet to come."""
    descs = ring.shared.receive_descs
    entries, umem_chunks = len(descs), len(ring.free)
    total = 0
    sound = True
    for k in range(available):
        place = (consumer + k) & (entries - 1)
        address, word = np.int64(descs[place, 0]), np.int64(descs[place, 1])
        length = word & MASK
        sound &= 0 <= address >> CHUNK_SHIFT < umem_chunks and (address & (CHUNK - 1)) + length <= CHUNK
        total += length
        if (word >> 32) & _CONTINUED == 0:
            return k + 1, total, sound
    return 0, total, sound


@kernel
def _gather(ring, data, consumer, pieces, start):
    """Copy a packet's pieces to data[start:], one behind the other, and free their chunks."""
    descs = ring.shared.receive_descs
    for k in range(pieces):
        place = (consumer + k) & (len(descs) - 1)
        address, length = np.int64(descs[place, 0]), np.int64(descs[place, 1]) & MASK
        copy_bytes(data, start, data, address, length)
        start += length
        free_unit(ring, address >> CHUNK_SHIFT)


@kernel
def _discard(ring, consumer, pieces):
    """Free the chunks of a packet that is not delivered; a chunk that does not exist is nobody's."""
    descs = ring.shared.receive_descs
    for k in range(pieces):
        chunk = np.int64(descs[(consumer + k) & (len(descs) - 1), 0]) >> CHUNK_SHIFT
        if 0 <= chunk < len(ring.free):
            free_unit(ring, chunk)


@kernel
def _deliver(ring, frame, n, consumer, pieces, length):
    """Make record `n` of a sound packet. Returns False if it needs a slot and there is none."""
    data, words = frame.data, ring.words
    start = np.int64(ring.shared.receive_descs[consumer & (len(ring.shared.receive_descs) - 1), 0])
    unit = start >> CHUNK_SHIFT
    _, end = _unit_bounds(ring, unit)
    if pieces > 1 or start & (CHUNK - 1) < HEADROOM or start + length + ANSWER_ROOM > end:
        if words[R_FREE_SLOTS] == 0:
            return False
        words[R_FREE_SLOTS] -= 1
        unit = len(ring.free) + np.int64(ring.free_slots[words[R_FREE_SLOTS]])
        begin, end = _unit_bounds(ring, unit)
        start = begin + KERNEL_HEADROOM
        _gather(ring, data, consumer, pieces, start)
        ring.stats[S_COPIED] += 1
    if words[R_UNFINISHED] and complete_partial(data, start, length):
        ring.stats[S_COMPLETED] += 1
    ring.held[n] = unit
    describe(frame.packets, n, start, length, end - start, words[R_INTERFACE], 0, 0)
    return True


@kernel
def receive(ring, frame):
    """Fill `frame` with what lies in the ring, at most BATCH packets. Returns how many. Never blocks."""
    words, stats = ring.words, ring.stats
    release_held(ring)
    reap(ring)
    refill(ring)
    consumer = words[R_RECEIVED]
    available = np.int64(acquire32(ring.shared.receive, words[R_PRODUCER])) - consumer & MASK
    n = 0
    while n < BATCH and available > 0:
        pieces, length, sound = _measure(ring, consumer, available)
        if pieces == 0:
            break
        if not sound or length < 1:
            stats[S_NONSENSE] += 1
            _discard(ring, consumer, pieces)
        elif length > _LONGEST:
            stats[S_CUT] += 1
            _discard(ring, consumer, pieces)
        elif _deliver(ring, frame, n, consumer, pieces, length):
            n += 1
        else:
            break
        consumer += pieces
        available -= pieces
    words[R_RECEIVED] = consumer & MASK
    release32(ring.shared.receive, words[R_CONSUMER], words[R_RECEIVED])
    words[R_HELD] = n
    stats[S_RECEIVED] += n
    frame.meta[META_COUNT] = n
    return n


# ------------------------------------------------------------------------------------------------------- send


@kernel
def _room_to_send(ring):
    """Descriptors that the transmit ring has room for."""
    used = ring.words[R_SENT] - np.int64(acquire32(ring.shared.send, ring.words[R_CONSUMER])) & MASK
    return len(ring.shared.send_descs) - used


@kernel
def _put(ring, address, length, more):
    """One descriptor into the transmit ring; the kernel sees it once `_publish` has been called."""
    descs = ring.shared.send_descs
    place = ring.words[R_SENT] & (len(descs) - 1)
    descs[place, 0] = np.uint64(address)
    descs[place, 1] = np.uint64(length | (_CONTINUED << 32 if more else 0))
    ring.words[R_SENT] = ring.words[R_SENT] + 1 & MASK


@kernel
def _place_own(ring, i, start, length):
    """Send record `i` from where it lies, in its own unit. Returns False if there is no room."""
    unit = np.int64(ring.held[i])
    pieces = (start + length - 1 >> CHUNK_SHIFT) - (start >> CHUNK_SHIFT) + 1
    if pieces > _room_to_send(ring):
        return False
    end = start + length
    while start < end:  # a descriptor may not cross a chunk's end
        stop = min(end, (start >> CHUNK_SHIFT) + 1 << CHUNK_SHIFT)
        _put(ring, start, stop - start, stop < end)
        start = stop
    if unit >= len(ring.free):
        ring.pieces[unit - len(ring.free)] = pieces
    ring.held[i] = NONE
    return True


@kernel
def _place_copy(ring, data, start, length):
    """Send a copy of a packet that lies in the hold area. Returns False if there is no room."""
    pieces = length + CHUNK - 1 >> CHUNK_SHIFT
    if pieces > _room_to_send(ring) or pieces > ring.words[R_FREE]:
        return False
    end = start + length
    while start < end:
        part = min(CHUNK, end - start)
        ring.words[R_FREE] -= 1
        address = np.int64(ring.free[ring.words[R_FREE]]) << CHUNK_SHIFT
        copy_bytes(data, address, data, start, part)
        _put(ring, address, part, start + part < end)
        start += part
    return True


@kernel
def _place(ring, frame):
    """Put what shall be sent into the transmit ring. Returns (placed, impossible) packets."""
    data = frame.data
    set_macs = ring.words[R_SET_MACS] != 0
    hold_base = frame.meta[META_HOLD_BASE]
    placed = 0
    impossible = 0
    for i in range(frame.meta[META_COUNT]):
        p = frame.packets[i]
        outcome = np.int64(p["outcome"])
        if outcome != _TRANSMIT and outcome != _PASS:
            continue
        start, length = np.int64(p["start"]), np.int64(p["length"])
        begin, end = np.int64(0), np.int64(0)
        own = i < ring.words[R_HELD] and ring.held[i] != NONE
        if own:
            begin, end = _unit_bounds(ring, np.int64(ring.held[i]))
        if start >= hold_base:
            own, begin, end = False, hold_base, len(data)
        if length < ETHERNET_BYTES or start < begin or start + length > end:
            impossible += 1
            continue
        if set_macs:
            for j in range(12):
                data[start + j] = ring.macs[j]
        if (own and _place_own(ring, i, start, length)) or (
            not own and _place_copy(ring, data, start, length)
        ):
            placed += 1
        else:
            impossible += 1
    release32(ring.shared.send, ring.words[R_PRODUCER], ring.words[R_SENT])
    return placed, impossible


@kernel
def _waiting(ring):
    """Packets in the transmit ring that the kernel has not taken."""
    descs, entries = ring.shared.send_descs, len(ring.shared.send_descs)
    packets = 0
    for k in range(entries - _room_to_send(ring)):
        word = np.int64(descs[(ring.words[R_SENT] - 1 - k) & (entries - 1), 1])
        if (word >> 32) & _CONTINUED == 0:
            packets += 1
    return packets


@kernel
def _kick(ring):
    """Have the kernel take what is in the transmit ring. Returns (packets that the device dropped, BROKEN or READY)."""
    stats, words = ring.stats, ring.words
    entries = len(ring.shared.send_descs)
    dropped = 0
    retries = 0
    for _ in range(_CALLS):
        before = _room_to_send(ring)
        if before == entries:
            break
        if words[R_ZERO_COPY] and ring.shared.send[words[R_FLAGS]] & _NEED_WAKEUP == 0:
            break
        result = _libc.sendto(
            np.int32(words[R_FD]),
            np.uint64(0),
            np.uint64(0),
            np.int32(_libc.MSG_DONTWAIT),
            np.uint64(0),
            np.uint32(0),
        )
        progress = reap(ring) > 0 or _room_to_send(ring) > before
        if result < 0:
            error = _libc.errno()
            stats[S_ERRNO] = error
            if error == _libc.EBUSY:  # xsk_build_skb() succeeded, the device did not: NET_XMIT_DROP
                dropped += 1
                continue
            if error != _libc.EAGAIN and error != _libc.ENOBUFS and error != _libc.EINTR:
                return dropped, BROKEN
        elif words[R_ZERO_COPY]:
            break  # the device has been woken
        if not progress:
            if retries == RETRIES:
                break
            retries += 1
            _libc.poll_one(ring.poll, words[R_FD], _libc.POLLOUT, RETRY_MS)
    stats[S_RETRIES] += retries
    return dropped, READY


@kernel
def _count_failures(ring, frame):
    """Packets of the frame that should be sent."""
    count = 0
    for i in range(frame.meta[META_COUNT]):
        outcome = np.int64(frame.packets[i]["outcome"])
        if outcome == _TRANSMIT or outcome == _PASS:
            count += 1
    return count


@kernel
def transmit(ring, frame):
    """Send what the graph marked TRANSMIT or PASS, and give the buffers back. Returns (sent, failed).

    What the kernel does not take (the interface is down) counts as failed; it stays in the ring, and leaves when the
    interface is up again.  Until then nothing more is put there.
    """
    words = ring.words
    state = READY
    if words[R_ZERO_COPY] == 0 and _room_to_send(ring) < len(ring.shared.send_descs):
        _, state = _kick(ring)
    sent = 0
    if state == READY:
        reap(ring)
        placed, failed = _place(ring, frame)
        if placed > 0:
            lost, _ = _kick(ring)
            if words[R_ZERO_COPY] == 0:
                lost += _waiting(ring)
            lost = min(lost, placed)
            sent = placed - lost
            failed += lost
    else:
        failed = _count_failures(ring, frame)
    ring.stats[S_SENT] += sent
    ring.stats[S_FAILED] += failed
    frame.meta[META_COUNT] = 0
    release_held(ring)
    refill(ring)
    return sent, failed


# ------------------------------------------------------------------------------------------------------- wait


@kernel
def wait(ring, timeout_ms):
    """Sleep until a packet comes. Returns READY, NOTHING after `timeout_ms` or a signal, or BROKEN.

    A socket whose interface goes away is not reported by poll(2) (`xsk_poll()`), only by SO_ERROR.
    """
    refill(ring)
    events = _libc.poll_one(ring.poll, ring.words[R_FD], _libc.POLLIN, timeout_ms)
    if events & ~np.int64(_libc.POLLIN):
        return BROKEN
    if events:
        return READY
    return BROKEN if _pending_error(ring) != 0 else NOTHING


@kernel
def _option(ring, level, name, size):
    """getsockopt(2) into ring.reply; returns its result."""
    at = np.uint64(ring.reply.ctypes.data)
    ring.reply[7] = size
    return _libc.getsockopt(
        np.int32(ring.words[R_FD]), np.int32(level), np.int32(name), at, at + np.uint64(56)
    )


@kernel
def _pending_error(ring):
    ring.reply[0] = 0
    if _option(ring, _libc.SOL_SOCKET, _libc.SO_ERROR, 4) != 0:
        return np.int64(_libc.errno())
    return np.int64(ring.reply[0]) & MASK


@kernel
def kernel_drops(ring):
    """Packets that the kernel dropped for want of a free chunk or of room in the receive ring, since the beginning."""
    # struct xdp_statistics: rx_dropped, rx_invalid_descs, tx_invalid_descs, rx_ring_full, rx_fill_ring_empty_descs, ...
    if _option(ring, SOL_XDP, XDP_STATISTICS, 48) == 0:
        drops = np.int64(ring.reply[0]) + np.int64(ring.reply[3])
        ring.stats[S_KERNEL_DROPS] = ring.words[R_DROPPED_BEFORE] + drops
    return ring.stats[S_KERNEL_DROPS]


# ----------------------------------------------------------------------------------------------------- driver


class AfXdpDriver(LiveDriver):
    """Receives what an XDP program at `interface` redirects from its receive queue `queue`, and sends to it.

    `register` is called once, with the socket's descriptor: it puts the socket into the program's XSKMAP.  `mode` is
    the one that the program is attached in.  `whole` says that nobody sends unfinished packets to the interface (its
    peer's offloads are off); else the driver finds out what it can, see `_xdp_socket.check_offloads`.

    `sockets` are those of `_xdp_socket.open_sockets`, where somebody has opened them in the interface's namespace.
    A socket serves one driver: its memory cannot be handed on.

    The other parameters are those of AfPacketDriver.  8 MiB of `chunks` and 2 MiB of slots count as locked memory for
    those who have not CAP_IPC_LOCK.  Raises DriverError or PrivilegeError, naming the interface.
    """

    kernels = Kernels(receive, transmit, wait, kernel_drops)
    counts = STATISTICS
    drops_word = S_KERNEL_DROPS

    def __init__(
        self,
        interface: str,
        *,
        register: Callable[[int], None],
        mode: XdpMode = XdpMode.NATIVE,
        queue: int = 0,
        whole: bool = False,
        index: int = 0,
        destination_mac: bytes | None = None,
        source_mac: bytes | None = None,
        chunks: int = CHUNKS,
        sockets: tuple[socket.socket, socket.socket] | None = None,
    ):
        macs = checked_macs("af_xdp", destination_mac, source_mac)
        opened = XdpSocket(interface, queue, mode, chunks, SLOTS, whole, sockets)
        self.ring = make_ring(
            opened.rings,
            opened.places,
            chunks=chunks,
            slots=SLOTS,
            fd=opened.fd,
            interface=index,
            macs=macs,
            unfinished=opened.unfinished,
            zero_copy=opened.zero_copy,
        )
        self.zero_copy = opened.zero_copy
        super().__init__(opened, make_frame(opened.data))
        try:
            refill(self.ring)
            register(opened.fd)
        except BaseException:
            self.close()
            raise

    def _forget_sockets(self) -> None:
        self.ring.words[R_FD] = -1

    def count_on(self, dropped: int) -> None:
        self.ring.words[R_DROPPED_BEFORE] = dropped
