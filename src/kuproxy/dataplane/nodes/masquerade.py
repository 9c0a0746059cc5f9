"""kp-masquerade: packets of flows with a translated source get it; their destination is the next node's affair."""

from kuproxy.codes import Node, Reason
from kuproxy.dataplane._jit import kernel
from kuproxy.dataplane.graph_queue import count, enqueue
from kuproxy.dataplane.source import set_source

_NODE = int(Node.MASQUERADE)


@kernel
def kp_masquerade(frame, tables, state, now):
    """Source address and port, checksums."""
    waiting = frame.queued[_NODE]
    for position in range(waiting):
        number = frame.queue[_NODE, position]
        packet = frame.packets[number]
        set_source(frame, tables, packet)
        enqueue(frame, Node.NAT44.value if packet["family"] == 4 else Node.NAT66.value, number)
    count(state, _NODE, Reason.MASQUERADED.value, waiting)
