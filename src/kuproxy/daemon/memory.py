"""Memory that was needed once, back to the kernel: lists of a whole cluster leave large holes in the heap.

The pages of libraries are another matter: LLVM is read from end to end when it is loaded (relocations), and hardly used
afterwards.  Read-only pages that nobody wrote are the page cache's, and come back with the next access.
"""

from __future__ import annotations

import ctypes
import gc
import re
from collections.abc import Iterator
from pathlib import Path

__all__ = ["give_back", "settle", "unwritten_library_pages"]

_MADV_DONTNEED = 4  # <asm-generic/mman-common.h>; the same on all machines but parisc
_LEAST = 1 << 20  # bytes resident: smaller mappings are not worth the call
_HEAD = re.compile(r"([0-9a-f]+)-([0-9a-f]+) (\S{4}) \S+ \S+ [1-9]\d* +(/\S+)$")


def give_back() -> None:
    """malloc_trim(3), where the C library has it (musl has not)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def settle() -> None:
    """Everything is here that stays: what is garbage goes, the collector need not look at the rest again.

    Takes some tenths of a second with a hundred thousand endpoints, once.
    """
    gc.collect()  # while all of it was made the collector was off: what is frozen is never freed
    gc.freeze()
    gc.enable()
    give_back()
    _leave_library_pages()


def unwritten_library_pages(smaps: str) -> Iterator[tuple[int, int]]:
    """Start and length, in bytes, of private read-only mappings of files of which no page was ever written.

    `smaps` is the text of /proc/PID/smaps (proc(5)).  A page that was written (relocated, then protected) counts as
    Anonymous, and letting go of it would lose what was written.
    """
    place: tuple[int, int] | None = None
    resident = 0
    for line in smaps.splitlines():
        name, _, value = line.partition(":")
        if not name.isalpha() and "-" in name:
            head = _HEAD.match(line)
            place, resident = None, 0
            if head and head[3] in ("r--p", "r-xp"):
                place = (int(head[1], 16), int(head[2], 16) - int(head[1], 16))
        elif name == "Rss":
            resident = int(value.split()[0]) << 10
        elif name == "Anonymous" and place is not None:
            if int(value.split()[0]) == 0 and resident >= _LEAST:
                yield place
            place = None


def _leave_library_pages() -> None:
    """madvise(2), MADV_DONTNEED; where it is refused they stay."""
    try:
        smaps = Path("/proc/self/smaps").read_text()
    except OSError:
        return
    advise = ctypes.CDLL(None).madvise
    advise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    for start, length in unwritten_library_pages(smaps):
        advise(start, length, _MADV_DONTNEED)
