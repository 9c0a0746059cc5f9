"""Source ports for flows whose source we choose: a search in the reverse index, without any state of its own.

A port is free if no live flow has the reply that the pod would send to it, so a live port is never given twice, and
the same port serves flows to different pods (RFC 7857 section 3: the mapping is per destination). With several workers
a port is this worker's only if steering brings replies to it here (worker_choice.py), so no two workers ever give out
the same one, whatever the address.

The walk is double hashing over a range whose size is prime, so that it visits every port before it repeats one; it
ends after TRIES ports of this worker's, because one packet must not cost as much as the whole range. Other workers'
ports are passed over for a multiplication each. They do not count: the steps of a walk and the choice of workers may
fall into a rhythm, in which a worker's own ports come late.
"""

import numpy as np

from kuproxy.dataplane import flow_table
from kuproxy.dataplane._jit import helper, kernel
from kuproxy.dataplane.membership import find_nodeport
from kuproxy.dataplane.worker_choice import comes_back, is_alone
from kuproxy.wire import l4

FIRST = 1024  # below are the system ports (RFC 6335 section 6)
COUNT = 64499  # the largest prime of ports that fits behind FIRST
# With 60,000 of the 64,499 in use, 1024 tries fail once in 10^32 flows.
TRIES = 1024


@helper
def _is_ours(tables, state, family, source_hi, source_lo, port, protocol):
    """Do replies to this port come to this worker, and will steering take them for replies?

    It looks for node ports first, and what is for one goes by the pod's address and port instead.
    """
    if is_alone(tables):
        return True
    return (
        comes_back(tables, state, source_lo, port, protocol)
        and find_nodeport(tables, family, protocol, port, source_hi, source_lo) == 0
    )


@helper
def _is_free(tables, state, family, pod_hi, pod_lo, pod_port, source_hi, source_lo, port, protocol, now):
    line = flow_table.reply_hash(state, family, pod_hi, pod_lo, pod_port, source_hi, source_lo, port)
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
    port 0, which may be taken, or belong to another worker.
    """
    if not l4.has_ports(protocol):
        port = np.int64(0)
        if comes_back(tables, state, source_lo, port, protocol) and _is_free(
            tables, state, family, pod_hi, pod_lo, pod_port, source_hi, source_lo, port, protocol, now
        ):
            return port
        return np.int64(-1)
    offset = seed % COUNT
    step = 1 + (seed >> 8) % (COUNT - 1)
    left = np.int64(TRIES)
    port = wanted
    for _ in range(COUNT + 1):
        if (
            FIRST <= port
            and port < FIRST + COUNT
            and _is_ours(tables, state, family, source_hi, source_lo, port, protocol)
        ):
            if _is_free(
                tables, state, family, pod_hi, pod_lo, pod_port, source_hi, source_lo, port, protocol, now
            ):
                return port
            left -= 1
            if left == 0:
                break
        port = FIRST + offset
        offset = (offset + step) % COUNT
    return np.int64(-1)
