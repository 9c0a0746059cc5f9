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
    W_IDLE_NS,
    W_POLLS,
    W_RECEIVE_DROPPED,
    W_TRANSMIT_FAILED,
    W_TRANSMITTED,
    W_VECTORS,
)
from kuproxy.dataplane.memory import acquire64
from kuproxy.drivers import af_packet, af_xdp
from kuproxy.drivers._libc import now_ns
from kuproxy.drivers.contract import BROKEN, NOTHING

_NS_PER_TICK = 1_000_000_000 // TICKS_PER_SECOND
_IDLE_MS = 50  # how late a command or an acknowledgement may be without traffic
_BUSY_SWEEP = 32  # buckets after each burst: at 10,000 bursts a second a table of a million takes 3 s
_IDLE_SWEEP = 8192  # buckets at each wake-up without traffic
_DROPS_EVERY = 1023  # vectors between two looks at the kernel's drop counter, a power of two less one


@kernel
def tick_now():
    """The data plane's clock: CLOCK_MONOTONIC in ticks."""
    return np.int64(now_ns()) // _NS_PER_TICK & TICK_MASK


@kernel
def _look_up(tables, state, worker, served):
    """The worker's command word; COMMAND_RUN also for `served`, which it has dealt with already.

    Tells that it has seen the tables' present generation, unless it is to leave the loop.
    """
    command = np.int64(acquire64(tables.header, T_COMMAND + worker))
    if command != COMMAND_RUN and command != served:
        return command
    state.header[W_ACK] = np.int64(acquire64(tables.header, T_GENERATION))
    return np.int64(COMMAND_RUN)


@kernel
def _count_sent(state, sent, failed):
    """Add a vector's; returns whether it is time to ask for the kernel's drops."""
    header = state.header
    header[W_TRANSMITTED] += sent
    header[W_TRANSMIT_FAILED] += failed
    return header[W_VECTORS] & _DROPS_EVERY == 0


@kernel
def _tend(tables, state, now):
    """What is done before each sleep; returns when that began."""
    run_maintenance(tables, state, now, _BUSY_SWEEP)
    state.header[W_POLLS] += 1
    return np.int64(now_ns())


@kernel
def _idle(tables, state):
    """What is done when nothing has come for a while."""
    run_maintenance(tables, state, tick_now(), _IDLE_SWEEP)


# One loop for each driver, because compiled code cannot choose its functions when it runs.


@kernel
def forward_af_packet(frame, tables, state, ring, worker, served):
    """Forward until the worker's command word says otherwise (returns it) or the interface breaks (BROKEN).

    `served` is the word that the worker has dealt with already: the number of a call, or COMMAND_RUN.
    """
    header = state.header
    while True:
        command = _look_up(tables, state, worker, served)
        if command != COMMAND_RUN:
            return command
        received = af_packet.receive(ring, frame)
        now = tick_now()
        if received != 0:
            run_graph(frame, tables, state, now)
            sent, failed = af_packet.transmit(ring, frame)
            if _count_sent(state, sent, failed):
                header[W_RECEIVE_DROPPED] = af_packet.kernel_drops(ring)
            continue
        asleep = _tend(tables, state, now)
        event = af_packet.wait(ring, _IDLE_MS)
        header[W_IDLE_NS] += np.int64(now_ns()) - asleep
        if event == BROKEN:
            return BROKEN
        if event == NOTHING:
            _idle(tables, state)
            header[W_RECEIVE_DROPPED] = af_packet.kernel_drops(ring)


@kernel
def forward_af_xdp(frame, tables, state, ring, worker, served):
    """The same over an AfXdpRing."""
    header = state.header
    while True:
        command = _look_up(tables, state, worker, served)
        if command != COMMAND_RUN:
            return command
        received = af_xdp.receive(ring, frame)
        now = tick_now()
        if received != 0:
            run_graph(frame, tables, state, now)
            sent, failed = af_xdp.transmit(ring, frame)
            if _count_sent(state, sent, failed):
                header[W_RECEIVE_DROPPED] = af_xdp.kernel_drops(ring)
            continue
        asleep = _tend(tables, state, now)
        event = af_xdp.wait(ring, _IDLE_MS)
        header[W_IDLE_NS] += np.int64(now_ns()) - asleep
        if event == BROKEN:
            return BROKEN
        if event == NOTHING:
            _idle(tables, state)
            header[W_RECEIVE_DROPPED] = af_xdp.kernel_drops(ring)
