"""kp-ipip: IP in IP, in all four combinations of families.

4 in 4: RFC 2003; 6 in 6 and 4 in 6: RFC 2473; 6 in 4: RFC 4213.
"""

from kuproxy.codes import Node
from kuproxy.dataplane._jit import kernel
from kuproxy.dataplane.tunnel import enter_tunnel, leave

_NODE = int(Node.IPIP)


@kernel
def kp_ipip(frame, tables, state, now):
    """An outer IP header, nothing else."""
    for position in range(frame.queued[_NODE]):
        packet = frame.packets[frame.queue[_NODE, position]]
        at, _ = enter_tunnel(frame, tables, state, packet, _NODE, 0, 0)
        if at >= 0:
            leave(packet, state, _NODE)
