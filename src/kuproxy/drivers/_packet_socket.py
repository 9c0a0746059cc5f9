"""Setting up AF_PACKET: two sockets, a receive ring, and one stretch of memory over ring and hold area.

Sockets may be opened by one process and used by another, and by a third when the second has died: packets wait in
the ring meanwhile.  Everything here runs once per driver, in plain Python.  Constants are those of <linux/if_packet.h>.
"""

import errno
import fcntl
import mmap
import socket
import struct
from typing import NamedTuple

import numpy as np

from kuproxy.dataplane.layout import HEADROOM, HOLD_ROOM
from kuproxy.drivers._mapping import Stretch
from kuproxy.errors import DriverError, PrivilegeError

SOL_PACKET = 263
PACKET_RX_RING, PACKET_STATISTICS, PACKET_VERSION = 5, 6, 10
PACKET_RESERVE, PACKET_VNET_HDR, PACKET_FANOUT, PACKET_IGNORE_OUTGOING = 12, 15, 18, 23
TPACKET_V2 = 1
FANOUT_QM = 5
FANOUT_IGNORE_OUTGOING = 0x4000  # a group has a hook of its own, which does not inherit the sockets' option
ETH_P_ALL = 3

TPACKET_ALIGNMENT = 16
BLOCK = 1 << 21  # of the ring: one allocation of the kernel, at most
TX_BUFFER = 1 << 26  # bytes that may be on their way out of the socket
_SO_SNDBUFFORCE = 32
_SIOCGIFNAME, _SIOCGIFINDEX = 0x8910, 0x8933


class RingShape(NamedTuple):
    """How the frames lie in the ring. A frame does not cross a block's end, and need not fill the block."""

    block_bytes: int
    blocks: int
    frame_bytes: int
    offsets: np.ndarray  # int64[frames], from the ring's beginning

    @property
    def size(self) -> int:
        return self.block_bytes * self.blocks


def ring_shape(frames: int, frame_bytes: int) -> RingShape:
    """At least `frames` frames.

    Blocks are powers of two because the kernel allocates them as such: a block of 257 pages would take 512.
    31 frames of 65,856 bytes leave 3 % of 2 MiB unused.
    """
    if frames < 1 or frame_bytes % TPACKET_ALIGNMENT or not 256 <= frame_bytes <= BLOCK:
        raise DriverError(
            f"a ring of {frames} frames of {frame_bytes} bytes: frames have 256 to {BLOCK} bytes, "
            f"a multiple of {TPACKET_ALIGNMENT}"
        )
    block = mmap.PAGESIZE
    while block < BLOCK and block < frames * frame_bytes:
        block *= 2
    per_block = block // frame_bytes
    blocks = -(-frames // per_block)
    which = np.arange(blocks * per_block)
    return RingShape(block, blocks, frame_bytes, which // per_block * block + which % per_block * frame_bytes)


def open_sockets(interface: str, shape: RingShape, fanout: int | None) -> tuple[socket.socket, socket.socket]:
    """A receiving socket with its ring, and a sending one, both bound to `interface` of this network namespace.

    With `fanout`, a group number, sockets share the interface's traffic by receive queue, in the order in which they
    are opened.  Raises PrivilegeError, DriverError.
    """
    opened: list[socket.socket] = []
    try:
        # Protocol 0: nothing comes in before the ring is ready and `bind` names the protocol.
        for _ in range(2):
            opened.append(socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0))
        rx, tx = opened
        for option, value in (
            (PACKET_VERSION, TPACKET_V2),
            (PACKET_VNET_HDR, 1),  # before the ring: it changes where packets lie in their frames
            (PACKET_RESERVE, HEADROOM),  # between the ring frame's own header and the packet's
            (PACKET_IGNORE_OUTGOING, 1),  # or we would hear ourselves
        ):
            rx.setsockopt(SOL_PACKET, option, value)
        request = struct.pack("IIII", shape.block_bytes, shape.blocks, shape.frame_bytes, len(shape.offsets))
        rx.setsockopt(SOL_PACKET, PACKET_RX_RING, request)
        tx.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
        try:
            tx.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, TX_BUFFER)
        except PermissionError:
            tx.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, TX_BUFFER)
        tx.bind((interface, 0))
        rx.bind((interface, ETH_P_ALL))
        if fanout is not None:
            rx.setsockopt(
                SOL_PACKET,
                PACKET_FANOUT,
                struct.pack("I", fanout & 0xFFFF | (FANOUT_QM | FANOUT_IGNORE_OUTGOING) << 16),
            )
    except OSError as error:
        for each in opened:
            each.close()
        if isinstance(error, PermissionError) and len(opened) < 2:
            raise PrivilegeError("packet sockets need CAP_NET_RAW") from error
        if error.errno == errno.EPERM:
            raise PrivilegeError(f"interface {interface}: {error.strerror}") from error
        raise DriverError(f"interface {interface}: {error.strerror or error}") from error
    return rx, tx


class PacketSockets:
    """What `open_sockets` returned, with the ring mapped; whichever process opened them.

    `data` is uint8[ring | HOLD_ROOM].  It stays valid memory after `close` and for as long as somebody refers
    to it; the kernel has then taken back the ring's pages.
    """

    def __init__(self, rx: socket.socket, tx: socket.socket, shape: RingShape):
        """Owns the sockets from now on.  Raises DriverError."""
        self.rx, self.tx = rx, tx
        # One stretch of addresses, so that Frame.data is one array: the ring is laid over its beginning.
        self._memory = Stretch(shape.size + HOLD_ROOM)
        self.data = self._memory.data
        try:
            self.interface = str(rx.getsockname()[0])
            self.index = _index_of(rx, self.interface)
            self._memory.cover(shape.size, rx.fileno())
        except OSError as error:
            self.close()
            raise DriverError(f"packet socket: {error.strerror or error}") from error

    def errors(self) -> int:
        """Read and clear the sockets' pending errors; returns one of them, 0 if there was none."""
        return max(s.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) for s in (self.rx, self.tx))

    def gone(self) -> bool:
        """Whether the interface was removed (one of the same name that came later is another).

        Asked through the socket, which belongs to the interface's network namespace.
        """
        try:
            fcntl.ioctl(self.rx, _SIOCGIFNAME, struct.pack("16si20x", b"", self.index))
        except OSError as error:
            return error.errno in (errno.ENODEV, errno.ENXIO)
        return False

    def close(self) -> None:
        """Idempotent."""
        self._memory.uncover()  # arrays may still refer to the ring's addresses
        self.rx.close()
        self.tx.close()


def _index_of(opened: socket.socket, interface: str) -> int:
    """Of an interface in the socket's network namespace, which need not be the caller's."""
    reply = fcntl.ioctl(opened, _SIOCGIFINDEX, struct.pack("16s24x", interface.encode()))
    return int(struct.unpack_from("i", reply, 16)[0])
