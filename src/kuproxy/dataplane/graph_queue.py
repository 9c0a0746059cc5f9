"""What every node does with a packet when it is done with it."""

import numpy as np

from kuproxy.dataplane._jit import helper
from kuproxy.dataplane.layout import W_OUTCOMES

_ONE = np.uint64(1)


@helper
def enqueue(frame, node, index):
    """Hand packet `index` to `node`."""
    waiting = frame.queued[node]
    frame.queue[node, waiting] = index
    frame.queued[node] = waiting + 1


@helper
def count(state, node, reason, packets):
    """Add `packets` to a node's counter."""
    state.counters[node, reason] += np.uint64(packets)


@helper
def finish(packet, state, node, outcome, reason):
    """End the packet's way at `node`: outcome, reason, counters."""
    packet["outcome"] = outcome
    packet["reason"] = reason
    state.header[W_OUTCOMES + outcome] += 1
    state.counters[node, reason] += _ONE
