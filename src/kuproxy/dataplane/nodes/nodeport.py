"""kp4-nodeport and kp6-nodeport: packets for a node address and a node port join those of the VIP behind it."""

from kuproxy.codes import Node, Reason
from kuproxy.dataplane._jit import helper, kernel
from kuproxy.dataplane.graph_queue import count, enqueue


@helper
def _nodeport(frame, state, node):
    waiting = frame.queued[node]
    for position in range(waiting):
        enqueue(frame, Node.BALANCE.value, frame.queue[node, position])
    if waiting != 0:
        count(state, node, Reason.VIP_MATCHED.value, waiting)


@kernel
def kp4_nodeport(frame, tables, state, now):
    """The flow remembers the node address and port, so replies come back from there."""
    _nodeport(frame, state, Node.NODEPORT4.value)


@kernel
def kp6_nodeport(frame, tables, state, now):
    """The same for IPv6."""
    _nodeport(frame, state, Node.NODEPORT6.value)
