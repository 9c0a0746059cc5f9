"""Live traffic of a Linux interface: a shared receive ring, and sending straight out of it.

The kernel puts each packet into a frame of a TPACKET_V2 ring, with a virtio_net_hdr before it, so that
segments of up to 64 KiB stay whole and partial checksums are known as such; `sendmmsg` sends the rewritten
packets from where they lie.  No packet is copied in user space.  (V3's blocks cost latency, transmit rings
and qdisc bypass gained nothing.)

The kernel fills the frame at its head, and only that; it does not tell where that is.  So a cursor has to be exact,
whenever its user dies: if it were one frame off, packets would wait for a whole lap, at every lap.  A frame that was
taken is marked in the ring itself, by a length of zero, which the kernel never writes.

    frame of the ring: [tpacket2_hdr ... | headroom | virtio_net_hdr 10 | Ethernet ... packet ... | room ...]
                        ^ offsets[i]                          ^ + tp_mac

The kernels `receive`, `transmit`, `wait` and `kernel_drops` take an AfPacketRing and release the GIL; an
engine's loop calls them compiled.  `AfPacketDriver` owns the sockets and wraps the kernels for everybody
else.

Not done: a VLAN tag that the interface has stripped stays stripped (what routes behind us is layer 3; such
packets are counted).  Packets larger than a ring frame (IPv6 jumbograms of "BIG TCP") are dropped and
counted.
"""

import socket
from typing import NamedTuple

import numpy as np

from kuproxy.codes import Outcome, PacketFlag
from kuproxy.dataplane._jit import kernel
from kuproxy.dataplane.layout import (
    BATCH,
    FRAME_SIZE,
    HEADROOM,
    META_COUNT,
    VNET_BYTES,
    make_frame,
)
from kuproxy.dataplane.memory import acquire32, load16, load32, release32, release64, store32
from kuproxy.drivers import _libc
from kuproxy.drivers._libc import now_ns
from kuproxy.drivers._live import Kernels, LiveDriver, checked_macs
from kuproxy.drivers._packet_socket import (
    PACKET_STATISTICS,
    SOL_PACKET,
    PacketSockets,
    open_sockets,
    ring_shape,
)
from kuproxy.drivers._records import complete_sctp, describe, vnet_flags
from kuproxy.drivers.contract import BROKEN, NOTHING, READY

__all__ = ["AfPacketDriver", "AfPacketRing", "kernel_drops", "now_ns", "receive", "transmit", "wait"]

FRAME_BYTES = 65_856  # a 64 KiB segment with headers, headroom, and room for an answer: 65,536 + 64 + 256
FRAMES = 512

# Fields of struct tpacket2_hdr
TP_STATUS, TP_LEN, TP_SNAPLEN, TP_MAC = 0, 4, 8, 12
TPACKET2_BYTES = 32
STATUS_KERNEL, STATUS_USER, STATUS_VLAN_VALID = 0, 1, 16

# Words of AfPacketRing.words
R_RX_FD = 0
R_TX_FD = 1
R_FRAME_BYTES = 2
R_CURSOR = 3  # ring frame that comes next
R_PENDING = 4  # ring frames before the cursor that were not given back yet
R_INTERFACE = 5  # what PACKET["interface"] is set to
R_SET_MACS = 6  # 1: write `macs` into what is sent
R_WORDS = 8

# Words of AfPacketRing.stats
S_RECEIVED = 0  # packets handed to the graph
S_CUT = 1  # dropped: longer than a ring frame, so the kernel has cut them
S_NONSENSE = 2  # dropped: the ring frame's offsets or lengths do not make sense
S_VLAN = 3  # received with a VLAN tag that the interface had stripped
S_SENT = 4
S_FAILED = 5
S_RETRIES = 6  # times that sending was tried again after EAGAIN or ENOBUFS
S_ERRNO = 7  # the last error in sending
S_KERNEL_DROPS = 8  # lost because the ring was full, as of the last call of kernel_drops
S_WORDS = 16

STATISTICS = {
    "received": S_RECEIVED,
    "cut": S_CUT,
    "nonsense": S_NONSENSE,
    "vlan_stripped": S_VLAN,
    "sent": S_SENT,
    "failed": S_FAILED,
    "retries": S_RETRIES,
    "last_errno": S_ERRNO,
}

_VNET = int(PacketFlag.VNET)
_PARTIAL = int(PacketFlag.PARTIAL_CHECKSUM)
_TRANSMIT, _PASS = int(Outcome.TRANSMIT), int(Outcome.PASS)

ETHERNET_BYTES = 14
# A full send buffer empties in well under a millisecond; a vector must not wait for longer than this in all.
RETRIES = 4
RETRY_MS = 1


class AfPacketRing(NamedTuple):
    """All that the kernels need besides the frame. The ring's memory is the beginning of Frame.data."""

    offsets: np.ndarray  # int64[frames]: where in Frame.data each ring frame begins
    words: np.ndarray  # int64[R_WORDS]
    stats: np.ndarray  # int64[S_WORDS]
    macs: np.ndarray  # uint8[12]: destination, source, as they lie in a packet
    messages: np.ndarray  # uint64[FRAME_SIZE, 8]: struct mmsghdr
    vectors: np.ndarray  # uint64[FRAME_SIZE, 4]: two struct iovec each
    no_vnet: np.ndarray  # uint8[VNET_BYTES]: zeros, the header of packets that have none
    poll: np.ndarray  # uint32[2]: struct pollfd
    reply: np.ndarray  # uint32[4]: tpacket_stats and its length


def make_ring(
    offsets: np.ndarray,
    frame_bytes: int,
    rx_fd: int,
    tx_fd: int,
    interface: int,
    macs: bytes | None,
    words: np.ndarray | None = None,
) -> AfPacketRing:
    """A ring bundle over frames at `offsets`. `macs` are 12 bytes, or None to leave addresses alone.

    `words` (int64[R_WORDS]) hold the place in the ring: those of a former user of the same socket, or None.
    """
    if words is None:
        words = np.zeros(R_WORDS, np.int64)
    words[R_RX_FD], words[R_TX_FD] = rx_fd, tx_fd
    words[R_FRAME_BYTES], words[R_INTERFACE] = frame_bytes, interface
    words[R_SET_MACS] = macs is not None
    return AfPacketRing(
        np.ascontiguousarray(offsets, np.int64),
        words,
        np.zeros(S_WORDS, np.int64),
        np.frombuffer(bytearray(macs or bytes(12)), np.uint8),
        np.zeros((FRAME_SIZE, 8), np.uint64),
        np.zeros((FRAME_SIZE, 4), np.uint64),
        np.zeros(VNET_BYTES, np.uint8),
        np.zeros(2, np.uint32),
        np.zeros(4, np.uint32),
    )


# ---------------------------------------------------------------------------------------------------- kernels


@kernel
def _give_back(ring, frame):
    """Hand the ring frames of the last vector to the kernel, oldest first."""
    words = ring.words
    frames = len(ring.offsets)
    position = words[R_CURSOR] - words[R_PENDING]
    if position < 0:
        position += frames
    for _ in range(words[R_PENDING]):
        release32(frame.data, ring.offsets[position] + TP_STATUS, STATUS_KERNEL)
        position += 1
        if position == frames:
            position = 0
    words[R_PENDING] = 0


@kernel
def _is_taken(data, base):
    """Whether a user has taken what the kernel had put into the frame."""
    return acquire32(data, base + TP_STATUS) & STATUS_USER != 0 and load32(data, base + TP_SNAPLEN) == 0


@kernel
def resume(ring, frame):
    """Take over a ring whose former user died between any two instructions.

    What it had taken is given back unsent.  Frames that it took before it had moved its cursor on lie from there on;
    frames that it had given back, and that the kernel has filled again since, bear no mark.
    """
    data, words = frame.data, ring.words
    frames = len(ring.offsets)
    cursor = words[R_CURSOR]
    if cursor < 0 or cursor >= frames:
        cursor = 0
    passed = 0
    while passed < frames and _is_taken(data, ring.offsets[cursor]):
        passed += 1
        cursor += 1
        if cursor == frames:
            cursor = 0
    words[R_PENDING] = 0
    release64(words, R_CURSOR, np.uint64(cursor))
    for ahead in range(frames):  # the oldest first
        position = cursor + ahead
        if position >= frames:
            position -= frames
        if _is_taken(data, ring.offsets[position]):
            release32(data, ring.offsets[position] + TP_STATUS, STATUS_KERNEL)


@kernel
def receive(ring, frame):
    """Fill `frame` with what lies in the ring, at most BATCH packets. Returns how many. Never blocks."""
    _give_back(ring, frame)
    data, words, stats = frame.data, ring.words, ring.stats
    frames, frame_bytes = len(ring.offsets), words[R_FRAME_BYTES]
    cursor = words[R_CURSOR]
    taken = 0
    n = 0
    # Not more than the ring has: frames that were taken are not given back yet, and still look full.
    while n < BATCH and taken < frames:
        base = ring.offsets[cursor]
        status = acquire32(data, base + TP_STATUS)
        if status & STATUS_USER == 0:
            break
        taken += 1
        cursor += 1
        if cursor == frames:
            cursor = 0
        mac = load16(data, base + TP_MAC)
        length = load32(data, base + TP_SNAPLEN)
        store32(data, base + TP_SNAPLEN, 0)  # taken: see `resume`
        if mac < TPACKET2_BYTES + HEADROOM or length < 1 or mac + length > frame_bytes:
            stats[S_NONSENSE] += 1
            continue
        # TP_STATUS_COPY and _LOSING are no reason to drop: the first cannot come without PACKET_COPY_THRESH,
        # the second says only that earlier packets were lost, and stays on until someone reads the
        # statistics.
        if length < load32(data, base + TP_LEN):
            stats[S_CUT] += 1
            continue
        if status & STATUS_VLAN_VALID:
            stats[S_VLAN] += 1
        start = base + mac
        vnet = start - VNET_BYTES
        flags = vnet_flags(data, vnet)
        if flags & _PARTIAL and complete_sctp(data, vnet, start, length):
            flags &= ~_PARTIAL
        describe(frame.packets, n, start, length, frame_bytes - mac, words[R_INTERFACE], vnet, flags)
        n += 1
    release64(words, R_CURSOR, np.uint64(cursor))  # after the marks
    words[R_PENDING] = taken
    stats[S_RECEIVED] += n
    frame.meta[META_COUNT] = n
    if n == 0:
        _give_back(ring, frame)  # only what was skipped: the caller may wait now instead of transmitting
    return n


@kernel
def _compose(ring, frame):
    """Describe the packets to be sent in `messages` and `vectors`. Returns (messages, impossible ones)."""
    data = frame.data
    base = np.uint64(data.ctypes.data)
    no_vnet = np.uint64(ring.no_vnet.ctypes.data)
    vectors_at = np.uint64(ring.vectors.ctypes.data)
    set_macs = ring.words[R_SET_MACS] != 0
    count = 0
    impossible = 0
    for i in range(frame.meta[META_COUNT]):
        p = frame.packets[i]
        outcome = np.int64(p["outcome"])
        if outcome != _TRANSMIT and outcome != _PASS:
            continue
        start, length, vnet = np.int64(p["start"]), np.int64(p["length"]), np.int64(p["vnet"])
        has_vnet = np.int64(p["flags"]) & _VNET != 0
        if (
            length < ETHERNET_BYTES
            or start < 0
            or start + length > len(data)
            or (has_vnet and (vnet < 0 or vnet + VNET_BYTES > len(data)))
        ):
            impossible += 1
            continue
        if set_macs:
            for j in range(12):
                data[start + j] = ring.macs[j]
        vector = ring.vectors[count]
        if has_vnet and vnet + VNET_BYTES == start:
            vector[0] = base + np.uint64(vnet)
            vector[1] = np.uint64(VNET_BYTES + length)
            ring.messages[count, 3] = 1
        else:
            vector[0] = base + np.uint64(vnet) if has_vnet else no_vnet
            vector[1] = np.uint64(VNET_BYTES)
            vector[2] = base + np.uint64(start)
            vector[3] = np.uint64(length)
            ring.messages[count, 3] = 2
        ring.messages[count, 2] = vectors_at + np.uint64(count * 32)  # msg_iov; msg_iovlen was word 3
        count += 1
    return count, impossible


@kernel
def _send(ring, count):
    """Send messages[0:count] in order. Returns how many went; errors cost the packet that met them."""
    stats, tx = ring.stats, ring.words[R_TX_FD]
    messages_at = np.uint64(ring.messages.ctypes.data)
    done = 0
    sent = 0
    retries = 0
    while done < count:
        result = np.int64(
            _libc.sendmmsg(
                np.int32(tx),
                messages_at + np.uint64(done * 64),
                np.uint32(count - done),
                np.int32(_libc.MSG_DONTWAIT),
            )
        )
        if result > 0:
            done += result
            sent += result
            continue
        # An error comes back only for the first message of a call.
        error = _libc.errno()
        stats[S_ERRNO] = error
        if error == _libc.EAGAIN or error == _libc.ENOBUFS or error == _libc.EINTR:
            if retries < RETRIES:
                retries += 1
                _libc.poll_one(ring.poll, tx, _libc.POLLOUT, RETRY_MS)
                continue
        elif error == _libc.ENXIO or error == _libc.ENODEV:
            break  # no interface any more: the rest would fare the same
        done += 1
    stats[S_RETRIES] += retries
    return sent


@kernel
def transmit(ring, frame):
    """Send what the graph marked TRANSMIT or PASS, and give the buffers back. Returns (sent, failed)."""
    count, failed = _compose(ring, frame)
    sent = 0
    if count > 0:
        sent = _send(ring, count)
        failed += count - sent
    ring.stats[S_SENT] += sent
    ring.stats[S_FAILED] += failed
    frame.meta[META_COUNT] = 0
    _give_back(ring, frame)
    return sent, failed


@kernel
def wait(ring, timeout_ms):
    """Sleep until a packet comes. Returns READY, NOTHING after `timeout_ms` or a signal, or BROKEN.

    BROKEN wants `AfPacketDriver.check`.  Call it only with nothing pending (after `transmit`, or when
    `receive` returned 0), else it returns at once.
    """
    events = _libc.poll_one(ring.poll, ring.words[R_RX_FD], _libc.POLLIN, timeout_ms)
    if events & ~np.int64(_libc.POLLIN):
        return BROKEN
    return READY if events else NOTHING


@kernel
def kernel_drops(ring):
    """Packets that the kernel dropped because the ring was full, since the driver was opened."""
    ring.reply[2] = 8  # sizeof(struct tpacket_stats): packets, drops; reading resets them
    at = np.uint64(ring.reply.ctypes.data)
    result = _libc.getsockopt(
        np.int32(ring.words[R_RX_FD]),
        np.int32(SOL_PACKET),
        np.int32(PACKET_STATISTICS),
        at,
        at + np.uint64(8),
    )
    if result == 0:
        ring.stats[S_KERNEL_DROPS] += np.int64(ring.reply[1])
    return ring.stats[S_KERNEL_DROPS]


# ----------------------------------------------------------------------------------------------------- driver


def open_for_worker(interface: str, fanout: int | None) -> tuple[socket.socket, socket.socket]:
    """The sockets of an AfPacketDriver with a ring of the default shape, for whichever process will use them."""
    return open_sockets(interface, ring_shape(FRAMES, FRAME_BYTES), fanout)


class AfPacketDriver(LiveDriver):
    """Receives from `interface` and sends to it.

    What is sent gets `destination_mac` and `source_mac` (6 bytes each; None for both: addresses stay).
    `index` is what PACKET["interface"] says.  `frames` ring frames of `frame_bytes` hold what has come but
    was not taken: 35 MiB by default.  With `fanout`, drivers with the same group number share the interface's
    traffic by receive queue.  `sockets` and `words` are those of a driver on the same interface before, maybe of a
    process that has died: what waits in the ring is received, and nothing else is touched.

    `ring` and `frame` are what the kernels of this module take.  Raises DriverError without a compiler or
    such an interface, PrivilegeError without CAP_NET_RAW.
    """

    kernels = Kernels(receive, transmit, wait, kernel_drops)
    counts = STATISTICS
    drops_word = S_KERNEL_DROPS

    def __init__(
        self,
        interface: str,
        *,
        index: int = 0,
        destination_mac: bytes | None = None,
        source_mac: bytes | None = None,
        frames: int = FRAMES,
        frame_bytes: int = FRAME_BYTES,
        fanout: int | None = None,
        sockets: tuple[socket.socket, socket.socket] | None = None,
        words: np.ndarray | None = None,
    ):
        macs = checked_macs("af_packet", destination_mac, source_mac)
        shape = ring_shape(frames, frame_bytes)
        self._sockets = PacketSockets(*(sockets or open_sockets(interface, shape, fanout)), shape)
        rx, tx = self._sockets.rx.fileno(), self._sockets.tx.fileno()
        self.ring = make_ring(shape.offsets, frame_bytes, rx, tx, index, macs, words)
        super().__init__(self._sockets, make_frame(self._sockets.data))
        if words is not None:
            resume(self.ring, self.frame)

    def _forget_sockets(self) -> None:
        self.ring.words[[R_RX_FD, R_TX_FD]] = -1

    def count_on(self, dropped: int) -> None:
        self.ring.stats[S_KERNEL_DROPS] = dropped
