"""Memory that was needed once, back to the kernel: lists of a whole cluster leave large holes in the heap."""

from __future__ import annotations

import ctypes

__all__ = ["give_back"]


def give_back() -> None:
    """malloc_trim(3), where the C library has it (musl has not)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
