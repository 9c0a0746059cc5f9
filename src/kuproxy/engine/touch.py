"""Flows whose packets the kernel carries: control tells their worker until when to remember them.

The worker alone writes its flow table, between two vectors, as with every other request.  A flow that is no longer the
one that was meant is left alone, and none is ever remembered for a shorter time than before.
"""

import os

import numpy as np

from kuproxy.codes import FlowState
from kuproxy.dataplane.layout import TICK_MASK, WorkerState

__all__ = ["TOUCH", "receive_touches", "send_touches", "touch_all"]

TOUCH = np.dtype(
    [
        ("slot", "<u4"),
        ("expires", "<u4"),  # ticks
        # The flow that is meant.
        ("hash", "<u4"),
        ("pod", "<u4"),
        ("created", "<u4"),
        ("reverse_hash", "<u4"),
    ]
)
_AT_ONCE = 1 << 20  # bytes
_CLOSING = int(FlowState.TCP_CLOSING)


def send_touches(touches: np.ndarray) -> int:
    """A descriptor of memory that holds them; the caller closes it."""
    fd = os.memfd_create("kuproxy-touches", os.MFD_CLOEXEC)
    with os.fdopen(os.dup(fd), "wb") as file:
        file.write(touches.tobytes())
    return fd


def receive_touches(fd: int) -> np.ndarray:
    """TOUCH[n]."""
    os.lseek(fd, 0, os.SEEK_SET)
    parts = []
    while part := os.read(fd, _AT_ONCE):
        parts.append(part)
    return np.frombuffer(b"".join(parts), TOUCH)


def touch_all(state: WorkerState, touches: np.ndarray) -> int:
    """Let these flows live until then; returns how many were the ones that were meant."""
    touches = touches[touches["slot"] < len(state.entries)]
    slots = touches["slot"]
    entries, flows = state.entries[slots], state.flows[slots]
    same = (entries["pod"] != 0) & (entries["pod"] == touches["pod"]) & (entries["hash"] == touches["hash"])
    same &= (flows["created"] == touches["created"]) & (flows["reverse_hash"] == touches["reverse_hash"])
    same &= flows["state"] != _CLOSING
    later = (touches["expires"].astype(np.int64) - entries["expires"]) & TICK_MASK
    longer = same & (later != 0) & (later <= TICK_MASK >> 1)
    state.entries["expires"][slots[longer]] = touches["expires"][longer]
    return int(np.count_nonzero(same))
