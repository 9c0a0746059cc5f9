"""Source ports for flows whose source we choose: a search in the reverse index, without any state of its own.

A port is free if no live flow has the reply that the pod would send to it, so a live port is never given twice, and
the same port serves flows to different pods (RFC 7857 section 3: the mapping is per destination). Every worker has a
range of its own: the destination port of a reply tells the worker.

The walk is double hashing over a range whose size is prime, so that it visits every port before it repeats one; it
ends after TRIES ports, because one packet must not cost as much as the whole range.
"""

import numpy as np

from kuproxy.dataplane import flow_table
from kuproxy.dataplane._jit import helper, kernel
from kuproxy.dataplane.layout import W_PORT_COUNT, W_PORT_FIRST
from kuproxy.wire import l4

FIRST = 1024  # below are the system ports (RFC 6335 section 6)
COUNT = 64499  # the largest prime of ports that fits behind FIRST
# With 60,000 of the 64,499 in use, 1024 tries fail once in 10^32 flows.
TRIES = 1024


def largest_prime(limit: int) -> int:
    """The largest prime up to `limit`, which must be at least 2."""
    while any(limit % divisor == 0 for divisor in range(2, int(limit**0.5) + 1)):
        limit -= 1
    return limit


def worker_ports(worker: int, workers: int) -> tuple[int, int]:
    """(first, count) of the ports of worker 0 ... workers - 1, for W_PORT_FIRST and W_PORT_COUNT."""
    size = (65536 - FIRST) // workers
    return FIRST + worker * size, largest_prime(size)


@helper
def _is_free(tables, state, family, pod_hi, pod_lo, pod_port, source_hi, source_lo, port, protocol, now):
    line = flow_table.reply_hash(family, pod_hi, pod_lo, pod_port, source_hi, source_lo, port)
    taken = flow_table.find_reply(
        tables,
        state,
        np.int64(-1),
        line,
        pod_hi,
        pod_lo,
        pod_port,
        source_hi,
        source_lo,
        port,
        protocol,
        family,
        now,
    )
    return taken < 0 and flow_table.free_reverse(tables, state, line, now) >= 0


@kernel
def allocate(
    tables, state, family, pod_hi, pod_lo, pod_port, source_hi, source_lo, protocol, wanted, seed, now
):
    """A port of ours such that replies of this pod to source:port belong to no live flow, or -1.

    `wanted` (the client's own port) is taken if it lies in the range and is free. `seed` (32 bits, the flow's hash)
    begins the walk. The reply's line of the reverse index has room for the flow. Protocols without ports have but
    port 0, which may be taken.
    """
    if not l4.has_ports(protocol):
        if _is_free(tables, state, family, pod_hi, pod_lo, pod_port, source_hi, source_lo, 0, protocol, now):
            return np.int64(0)
        return np.int64(-1)
    first = state.header[W_PORT_FIRST]
    ports = state.header[W_PORT_COUNT]
    if ports == 0:
        first = np.int64(FIRST)
        ports = np.int64(COUNT)
    offset = seed % ports
    step = np.int64(1)
    if ports > 2:
        step += (seed >> 8) % (ports - 1)
    port = wanted
    for _ in range(min(ports, TRIES) + 1):
        if first <= port and port < first + ports:
            if _is_free(
                tables, state, family, pod_hi, pod_lo, pod_port, source_hi, source_lo, port, protocol, now
            ):
                return port
        port = first + offset
        offset = (offset + step) % ports
    return np.int64(-1)
