"""Setting up AF_XDP: a socket, its UMEM and four rings, bound to one queue of an interface.

Everything here runs once per driver, in plain Python.  Constants are those of <linux/if_xdp.h> and <linux/ethtool.h>.
"""

import ctypes
import errno
import fcntl
import os
import socket
import struct
import time
from enum import StrEnum

import numpy as np

from kuproxy.dataplane.layout import HOLD_ROOM
from kuproxy.drivers._mapping import Stretch
from kuproxy.drivers._xdp_umem import CHUNK, RESERVE, SLOT_CHUNKS, Rings
from kuproxy.errors import DriverError, PrivilegeError

AF_XDP = 44
SOL_XDP = 283
XDP_MMAP_OFFSETS, XDP_RX_RING, XDP_TX_RING, XDP_UMEM_REG = 1, 2, 3, 4
XDP_UMEM_FILL_RING, XDP_UMEM_COMPLETION_RING, XDP_STATISTICS, XDP_OPTIONS = 5, 6, 7, 8
_COPY, _USE_NEED_WAKEUP, _USE_SG = 1 << 1, 1 << 3, 1 << 4
_OPTIONS_ZEROCOPY = 1
_PAGE_OFFSETS = {"receive": 0, "send": 0x8000_0000, "fill": 0x1_0000_0000, "complete": 0x1_8000_0000}
_SO_SNDBUFFORCE = 32
_TX_BUFFER = 1 << 26  # bytes that may be on their way out of the socket
_SIOCGIFNAME, _SIOCGIFINDEX, _SIOCETHTOOL = 0x8910, 0x8933, 0x8946
_ETHTOOL_GDRVINFO = 3
# The kernel frees a queue some time after the socket that had it is gone (`xp_put_pool()` leaves it to a work queue).
_BUSY_PATIENCE_S = 2.0

_libc = ctypes.CDLL(None, use_errno=True)


class XdpMode(StrEnum):
    """Where at an interface an XDP program runs."""

    NATIVE = "native"  # in the device's driver, before there is an skb
    GENERIC = "generic"  # in the kernel's stack: any device, but later and slower


def open_sockets(interface: str) -> tuple[socket.socket, socket.socket]:
    """An AF_XDP socket of the calling thread's namespace, and another one to ask about interfaces.

    An XDP socket answers no ioctl(2).  Raises PrivilegeError or DriverError, in which `interface` is named.
    """
    return open_socket(interface), socket.socket(socket.AF_INET, socket.SOCK_DGRAM)


def open_socket(interface: str) -> socket.socket:
    """The former of the two.  Until it is bound it may be handed to any process; it stays in this namespace."""
    try:
        opened = socket.socket(AF_XDP, socket.SOCK_RAW, 0)
    except PermissionError as error:
        raise PrivilegeError(f"interface {interface}: AF_XDP sockets need CAP_NET_RAW") from error
    except OSError as error:
        raise DriverError(f"interface {interface}: this kernel has no AF_XDP (CONFIG_XDP_SOCKETS)") from error
    try:
        opened.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, _TX_BUFFER)
    except PermissionError:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _TX_BUFFER)
    return opened


class XdpSocket:
    """A socket whose rings and UMEM are ready, bound to queue `queue` of `interface`.

    `data` is uint8[UMEM | HOLD_ROOM].  Like `rings`, it stays valid memory after `close` for as long as somebody
    refers to it.  `sockets` are `open_sockets()`, called in the interface's namespace; they are closed with this.
    """

    def __init__(
        self,
        interface: str,
        queue: int,
        mode: XdpMode,
        chunks: int,
        slots: int,
        whole: bool,
        sockets: tuple[socket.socket, socket.socket] | None = None,
    ) -> None:
        if chunks & (chunks - 1) or not 2 * RESERVE <= chunks <= 1 << 16:
            raise DriverError(f"{chunks} chunks: a power of two is needed, from 512 to 65536")
        self.interface = interface
        self._stretches: list[Stretch] = []
        self._socket, self._probe = sockets or open_sockets(interface)
        self.fd = self._socket.fileno()
        try:
            request = fcntl.ioctl(self._probe, _SIOCGIFINDEX, struct.pack("16si20x", interface.encode(), 0))
            self.index = struct.unpack("16si20x", request)[1]
            self.unfinished = check_offloads(self._probe, interface, mode, whole)
            umem = (chunks + slots * SLOT_CHUNKS) * CHUNK
            memory = Stretch(umem + HOLD_ROOM)
            self.data = memory.data
            self._register_memory(memory.address, umem)
            self.rings, self.places = self._map_rings(chunks)
            self._bind(queue, mode)
        except OSError as error:
            self.close()
            raise DriverError(f"interface {interface}: {error.strerror or error}") from error
        except DriverError:
            self.close()
            raise
        options = self._socket.getsockopt(SOL_XDP, XDP_OPTIONS, 4)
        self.zero_copy = bool(struct.unpack("=I", options)[0] & _OPTIONS_ZEROCOPY)

    def _register_memory(self, address: int, size: int) -> None:
        # struct xdp_umem_reg: addr, len, chunk_size, headroom, flags, tx_metadata_len
        request = struct.pack("=QQIIII", address, size, CHUNK, 0, 0, 0)
        try:
            self._socket.setsockopt(SOL_XDP, XDP_UMEM_REG, request)
        except OSError as error:
            if error.errno in (errno.ENOBUFS, errno.ENOMEM, errno.EPERM):
                raise DriverError(
                    f"interface {self.interface}: {size >> 20} MiB of packet memory cannot be locked "
                    f"({error.strerror}); raise RLIMIT_MEMLOCK (LimitMEMLOCK=infinity) or give CAP_IPC_LOCK"
                ) from error
            raise

    def _map_rings(self, entries: int) -> tuple[Rings, tuple[int, int, int]]:
        """All four with as many entries as there are chunks, so that fill and completion never want for room."""
        for option in (XDP_UMEM_FILL_RING, XDP_UMEM_COMPLETION_RING, XDP_RX_RING, XDP_TX_RING):
            self._socket.setsockopt(SOL_XDP, option, entries)
        # struct xdp_mmap_offsets: for rx, tx, fr, cr each producer, consumer, desc, flags
        offsets = struct.unpack("=16Q", self._socket.getsockopt(SOL_XDP, XDP_MMAP_OFFSETS, 128))
        heads, descs, places = {}, {}, set()
        for number, name in enumerate(("receive", "send", "fill", "complete")):
            producer, consumer, first, flags = offsets[4 * number : 4 * number + 4]
            words = 2 if name in ("receive", "send") else 1
            size = first + entries * 8 * words
            stretch = Stretch(size)
            self._stretches.append(stretch)
            stretch.cover(size, self.fd, _PAGE_OFFSETS[name])
            heads[name] = stretch.data[:first].view(np.uint32)
            array = stretch.data[first:].view(np.uint64)
            descs[name] = array.reshape(entries, 2) if words == 2 else array
            places.add((producer // 4, consumer // 4, flags // 4))
        if len(places) != 1:
            raise DriverError(
                f"interface {self.interface}: this kernel lays out its XDP rings in an unknown way"
            )
        both = {**heads, **{f"{name}_descs": array for name, array in descs.items()}}
        return Rings(**both), places.pop()

    def _bind(self, queue: int, mode: XdpMode) -> None:
        """Zero-copy where the device can: without _COPY the kernel tries that first, and falls back by itself."""
        flags = _USE_NEED_WAKEUP | _USE_SG | (_COPY if mode is XdpMode.GENERIC else 0)
        address = struct.pack("=HHIII", AF_XDP, flags, self.index, queue, 0)  # struct sockaddr_xdp
        deadline = time.monotonic() + _BUSY_PATIENCE_S
        while _libc.bind(self.fd, address, len(address)) != 0:
            code = ctypes.get_errno()
            if code != errno.EBUSY or time.monotonic() > deadline:
                raise self._not_bound(queue, code)
            time.sleep(0.002)

    def _not_bound(self, queue: int, code: int) -> DriverError:
        reason = {
            errno.EBUSY: "another AF_XDP socket has it already",
            errno.EINVAL: "the interface has no such queue, or the kernel is older than Linux 6.6",
        }.get(code, os.strerror(code))
        return DriverError(f"interface {self.interface}, queue {queue}: {reason}")

    def errors(self) -> int:
        """Read and clear the socket's pending error."""
        return self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)

    def gone(self) -> bool:
        """Whether the interface was removed (one of the same name that came later is another)."""
        try:
            fcntl.ioctl(self._probe, _SIOCGIFNAME, struct.pack("16si20x", b"", self.index))
        except OSError as error:
            return error.errno in (errno.ENODEV, errno.ENXIO)
        return False

    def close(self) -> None:
        """Idempotent. The queue is free for another socket then: nothing may be left mapped."""
        for stretch in self._stretches:
            stretch.uncover()
        self._socket.close()
        self._probe.close()


def check_offloads(probe: socket.socket, interface: str, mode: XdpMode, whole: bool) -> bool:
    """Whether packets from `interface` may have partial checksums. Raises DriverError where we could not know enough.

    What comes over a wire is finished.  A virtual device (veth, tun, virtio) hands over what another stack has sent to
    it, as it left that stack.  In native mode the kernel sees to it that those are single packets (`veth_xdp_set()`,
    `virtnet_xdp_set()` switch segmentation off), so that only checksums are left to complete.  In generic mode whole
    segments of 64 KiB come, whose size on the wire nobody tells.
    """
    if whole or _is_hardware(probe, interface):
        return False
    if mode is XdpMode.GENERIC:
        raise DriverError(
            f"interface {interface}: in generic mode AF_XDP cannot tell unfinished segments of a virtual device from "
            "packets; use native mode, or the driver af_packet"
        )
    return True


def _is_hardware(probe: socket.socket, interface: str) -> bool:
    """A PCI device, but not one that a hypervisor's stack is behind."""
    # struct ethtool_drvinfo: cmd, driver[32], version[32], fw_version[32], bus_info[32], ... 196 bytes
    information = ctypes.create_string_buffer(struct.pack("=I192x", _ETHTOOL_GDRVINFO), 196)
    request = struct.pack("16sQ16x", interface.encode(), ctypes.addressof(information))
    try:
        fcntl.ioctl(probe, _SIOCETHTOOL, request)
    except OSError:
        return False
    driver, bus = (information.raw[at : at + 32].split(b"\0")[0].decode() for at in (4, 100))
    return driver != "virtio_net" and bus.count(":") == 2
