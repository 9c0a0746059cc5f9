"""The compiled loop of a live worker: receive, run the graph, transmit, until a command word says otherwise."""

import numpy as np

from kuproxy.dataplane._jit import kernel
from kuproxy.dataplane.graph import run_graph, run_maintenance
from kuproxy.dataplane.layout import (
    COMMAND_RUN,
    T_COMMAND,
    T_GENERATION,
    TICK_MASK,
    TICKS_PER_SECOND,
    W_ACK,
    W_POLLS,
    W_RECEIVE_DROPPED,
    W_TRANSMIT_FAILED,
    W_TRANSMITTED,
    W_VECTORS,
)
from kuproxy.dataplane.memory import acquire64
from kuproxy.drivers import af_packet

BROKEN = -1  # the interface is gone, or its socket has an error

_NS_PER_TICK = 1_000_000_000 // TICKS_PER_SECOND
_IDLE_MS = 50  # how late a command or an acknowledgement may be without traffic
_BUSY_SWEEP = 32  # buckets after each burst: at 10,000 bursts a second a table of a million takes 3 s
_IDLE_SWEEP = 8192  # buckets at each wake-up without traffic
_DROPS_EVERY = 1023  # vectors between two looks at the kernel's drop counter, a power of two less one


@kernel
def tick_now():
    """The data plane's clock: CLOCK_MONOTONIC in ticks."""
    return np.int64(af_packet.now_ns()) // _NS_PER_TICK & TICK_MASK


@kernel
def forward_af_packet(frame, tables, state, ring, worker, served):
    """Forward until the worker's command word says otherwise (returns it) or the interface breaks (BROKEN).

    `served` is the word that the worker has dealt with already: the number of a call, or COMMAND_RUN.
    """
    header = state.header
    while True:
        command = np.int64(acquire64(tables.header, T_COMMAND + worker))
        if command != COMMAND_RUN and command != served:
            return command
        header[W_ACK] = np.int64(acquire64(tables.header, T_GENERATION))
        received = af_packet.receive(ring, frame)
        now = tick_now()
        if received != 0:
            run_graph(frame, tables, state, now)
            sent, failed = af_packet.transmit(ring, frame)
            header[W_TRANSMITTED] += sent
            header[W_TRANSMIT_FAILED] += failed
            if header[W_VECTORS] & _DROPS_EVERY == 0:
                header[W_RECEIVE_DROPPED] = af_packet.kernel_drops(ring)
            continue
        run_maintenance(tables, state, now, _BUSY_SWEEP)
        header[W_POLLS] += 1
        event = af_packet.wait(ring, _IDLE_MS)
        if event == af_packet.BROKEN:
            return BROKEN
        if event == af_packet.NOTHING:
            run_maintenance(tables, state, tick_now(), _IDLE_SWEEP)
            header[W_RECEIVE_DROPPED] = af_packet.kernel_drops(ring)
