"""IPv4 identifications of the packets that we make."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Numbers:
    """A worker's part of the 65,536, over and over: the addresses are the same at every worker (RFC 6864)."""

    workers: int = 1
    worker: int = 0
    last: int = 0

    def next(self) -> int:
        """The one after the last; the very first is the second of the worker's part."""
        size = 65536 // self.workers
        first = self.worker * size
        self.last = first + (self.last - first + 1) % size
        return self.last
