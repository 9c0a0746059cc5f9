"""What every node does with a packet when it is done with it."""

import numpy as np

from kuproxy.codes import Node
from kuproxy.dataplane._jit import helper
from kuproxy.dataplane.layout import W_OUTCOMES

_ONE = np.uint64(1)


@helper
def enqueue(frame, node, index):
    """Hand packet `index` to `node`."""
    waiting = frame.queued[node]
    frame.queue[node, waiting] = index
    frame.queued[node] = waiting + 1


# What kp-icmp shall send about a packet, in the packet's `new_port`; its `slot` holds an MTU or a pointer.
SEND_TIME_EXCEEDED = 1
SEND_TOO_BIG = 2
SEND_SOURCE_ROUTE = 3
SEND_PARAMETER_PROBLEM = 4
SEND_ECHO_REPLY = 5


@helper
def answer(frame, index, kind, value):
    """Hand packet `index` to kp-icmp."""
    packet = frame.packets[index]
    packet["new_port"] = kind
    packet["slot"] = value
    enqueue(frame, Node.ICMP.value, index)


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
