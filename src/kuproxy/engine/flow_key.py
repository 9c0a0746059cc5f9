"""By which hash a worker's flows are found, and under which key: words of its state, so that successors find them too.

Wishes come from above as `bytes | None`: None is VPP's hash, b"" a keyed one under a key that nobody shall know, and
16 bytes are the key itself, for nodes that must agree.
"""

from __future__ import annotations

import os
from typing import NamedTuple

import numpy as np

from kuproxy.dataplane.hash import hash_with, ports_word
from kuproxy.dataplane.layout import (
    FLOW_HASH_GIVEN,
    FLOW_HASH_RANDOM,
    FLOW_HASH_VPP,
    W_FLOW_HASH,
    W_FLOW_KEY,
    WorkerState,
)

__all__ = ["KEY_BYTES", "VPP", "FlowKey", "Wish", "flow_hash_of"]

KEY_BYTES = 16
Wish = bytes | None


class FlowKey(NamedTuple):
    """What stands in W_FLOW_HASH and the two words of W_FLOW_KEY, as int64."""

    mode: int
    key0: int
    key1: int

    @classmethod
    def read(cls, state: WorkerState) -> FlowKey:
        """The worker's."""
        header = state.header
        return cls(int(header[W_FLOW_HASH]), int(header[W_FLOW_KEY]), int(header[W_FLOW_KEY + 1]))

    def write(self, state: WorkerState) -> None:
        """Only the worker itself may do so, between vectors, and together with its flows."""
        state.header[W_FLOW_KEY : W_FLOW_KEY + 2] = self.key0, self.key1
        state.header[W_FLOW_HASH] = self.mode

    def meeting(self, wish: Wish) -> FlowKey:
        """What meets the wish: this one if it does already, so that a random key is drawn once."""
        if wish is None:
            return VPP
        if not wish:
            return self if self.mode == FLOW_HASH_RANDOM else _of(FLOW_HASH_RANDOM, os.urandom(KEY_BYTES))
        if len(wish) != KEY_BYTES:
            raise ValueError(f"a key of {len(wish)} bytes; it has {KEY_BYTES}")
        return _of(FLOW_HASH_GIVEN, wish)

    @property
    def words(self) -> tuple[np.int64, np.uint64, np.uint64]:
        """As kernels take them."""
        mask = (1 << 64) - 1
        return np.int64(self.mode), np.uint64(self.key0 & mask), np.uint64(self.key1 & mask)


VPP = FlowKey(FLOW_HASH_VPP, 0, 0)


def _of(mode: int, key: bytes) -> FlowKey:
    first, second = (int.from_bytes(key[at : at + 8], "little", signed=True) for at in (0, 8))
    return FlowKey(mode, first, second)


def flow_hash_of(
    state: WorkerState,
    family: int,
    source: tuple[np.uint64, np.uint64],
    destination: tuple[np.uint64, np.uint64],
    source_port: int = 0,
    destination_port: int = 0,
) -> int:
    """The worker's flow hash of these addresses (as the tables hold them) and ports (host order)."""
    mode, key0, key1 = FlowKey.read(state).words
    word = ports_word(np.int64(source_port), np.int64(destination_port))
    return int(hash_with(mode, key0, key1, np.int64(family), *source, *destination, np.uint64(word)))
