"""Compiled driver loops: packets go from a prepared run into the frame and through the graph, without Python between.

The generator (`_load`) is timed alone and subtracted, as VPP does with its packet generator's node. Rows of the run
lie in the order in which they are sent, so that the generator reads memory in sequence and the flow table alone is
visited at random.

Kernels are compiled without reference counts: they allocate nothing and return no arrays.
"""

import numpy as np

from kuproxy.dataplane import memory
from kuproxy.dataplane._jit import kernel
from kuproxy.dataplane.graph import run_graph
from kuproxy.dataplane.layout import META_COUNT, N_NODES
from kuproxy.dataplane.nodes.balance import kp_balance
from kuproxy.dataplane.nodes.input import kp_input
from kuproxy.dataplane.nodes.lookup import kp_lookup
from kuproxy.drivers._records import describe
from kuproxy.drivers._slots import HEADROOM

ROW = 64  # bytes of a row: every header that the graph reads or writes

# How far a packet goes: each stage contains the one before.
GENERATOR, INPUT, LOOKUP, BALANCE, WHOLE = range(5)


@kernel
def _load(frame, rows, payload, position, vector, stride, interface):
    """Rows position ... position + vector into the frame's slots; behind each row's ROW bytes follows `payload`."""
    for n in range(vector):
        start = n * stride + HEADROOM
        memory.copy_bytes(frame.data, start, rows, (position + n) * ROW, ROW)
        if len(payload) != 0:
            memory.copy_bytes(frame.data, start + ROW, payload, 0, len(payload))
        describe(frame.packets, n, start, ROW + len(payload), stride - HEADROOM, interface, start, 0)
    frame.meta[META_COUNT] = vector


@kernel
def drive(frame, tables, state, rows, payload, first, packets, vector, stride, interface, stage, now):
    """Send `packets` rows, beginning with row `first` and starting over behind the last, as far as `stage`.

    Returns the row that would be next. A vector never spans the end of the run, so the last may be shorter.
    """
    count = len(rows) // ROW
    position = first
    sent = 0
    while sent < packets:
        n = min(vector, count - position, packets - sent)
        _load(frame, rows, payload, position, n, stride, interface)
        if stage == WHOLE:
            run_graph(frame, tables, state, now)
        elif stage != GENERATOR:
            for node in range(N_NODES):
                frame.queued[node] = 0
            kp_input(frame, tables, state, now)
            if stage >= LOOKUP:
                kp_lookup(frame, tables, state, now)
            if stage >= BALANCE:
                kp_balance(frame, tables, state, now)
        sent += n
        position += n
        if position == count:
            position = 0
    return position


@kernel
def collect(frame, tables, state, rows, payload, out, stride, now):
    """Send every row once through the whole graph, and write what became of it to the same row of `out`."""
    count = len(rows) // ROW
    position = 0
    while position < count:
        n = min(128, count - position)
        _load(frame, rows, payload, position, n, stride, 0)
        run_graph(frame, tables, state, now)
        for i in range(n):
            memory.copy_bytes(out, (position + i) * ROW, frame.data, np.int64(frame.packets[i]["start"]), ROW)
        position += n
    return position


NO_PAYLOAD = np.zeros(0, np.uint8)
