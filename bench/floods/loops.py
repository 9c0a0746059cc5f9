"""Compiled loops for traffic of both directions: like bench.loops.drive, with an interface for each row."""

import numpy as np

from bench.loops import ROW
from kuproxy.dataplane import memory
from kuproxy.dataplane._jit import kernel
from kuproxy.dataplane.graph import run_graph
from kuproxy.dataplane.layout import META_COUNT
from kuproxy.drivers._records import describe
from kuproxy.drivers._slots import HEADROOM


@kernel
def _load(frame, rows, interfaces, position, vector, stride):
    for n in range(vector):
        start = n * stride + HEADROOM
        memory.copy_bytes(frame.data, start, rows, (position + n) * ROW, ROW)
        describe(
            frame.packets, n, start, ROW, stride - HEADROOM, np.int64(interfaces[position + n]), start, 0
        )
    frame.meta[META_COUNT] = vector


@kernel
def drive(frame, tables, state, rows, interfaces, passes, vector, stride, whole, now):
    """Send all rows (uint8[n * ROW]) so many times, `interfaces` (uint16[n]) says where each comes in.

    `whole` 0: the generator alone.
    """
    count = len(interfaces)
    for _ in range(passes):
        position = 0
        while position < count:
            n = min(vector, count - position)
            _load(frame, rows, interfaces, position, n, stride)
            if whole != 0:
                run_graph(frame, tables, state, now)
            position += n
    return count


@kernel
def collect(frame, tables, state, rows, interfaces, out, outcomes, vector, stride, now):
    """Send all rows once; `out` (uint8[n * ROW]) is what they became, `outcomes` (uint8[n]) their Outcome."""
    count = len(interfaces)
    position = 0
    while position < count:
        n = min(vector, count - position)
        _load(frame, rows, interfaces, position, n, stride)
        run_graph(frame, tables, state, now)
        for i in range(n):
            memory.copy_bytes(out, (position + i) * ROW, frame.data, np.int64(frame.packets[i]["start"]), ROW)
            outcomes[position + i] = frame.packets[i]["outcome"]
        position += n
    return count
