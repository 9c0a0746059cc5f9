"""Memory that a socket shares with the kernel, and ordinary memory that takes its place when the socket closes.

NumPy arrays over a mapping do not know when it ends.  So nothing is ever unmapped under them: what the socket had
mapped is replaced by zeroed memory at the same addresses, which goes when the last array does.
"""

import ctypes
import mmap
import os
import weakref

import numpy as np

__all__ = ["Stretch"]

_MAP_FIXED, _MAP_NORESERVE, _MAP_POPULATE = 0x10, 0x4000, 0x8000
_READ_WRITE = mmap.PROT_READ | mmap.PROT_WRITE
_ANONYMOUS = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]


class Stretch:
    """`size` bytes of zeroed memory at page-aligned addresses, over whose beginning a socket may be laid."""

    def __init__(self, size: int) -> None:
        total = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        self.address = _map(None, total, _ANONYMOUS, -1, 0)
        self._covered = 0
        buffer = (ctypes.c_uint8 * size).from_address(self.address)
        weakref.finalize(buffer, _libc.munmap, self.address, total).atexit = False
        self.data = np.frombuffer(buffer, np.uint8)  # uint8[size], valid for as long as somebody refers to it

    def cover(self, size: int, fd: int, offset: int = 0) -> None:
        """Lay the first `size` bytes of what `fd` has at `offset` over it. Raises OSError."""
        _map(self.address, size, mmap.MAP_SHARED | _MAP_FIXED | _MAP_POPULATE, fd, offset)
        self._covered = size

    def uncover(self) -> None:
        """Put ordinary memory there again, so that the socket can go. Idempotent."""
        if self._covered:
            _map(self.address, self._covered, _ANONYMOUS | _MAP_FIXED, -1, 0)
            self._covered = 0


def _map(address: int | None, size: int, flags: int, fd: int, offset: int) -> int:
    result = _libc.mmap(address, size, _READ_WRITE, flags, fd, offset)
    if result is None or result == ctypes.c_void_p(-1).value:
        code = ctypes.get_errno()
        raise OSError(code, f"mapping {size} bytes: {os.strerror(code)}")
    return int(result)
