"""kp-gre: the packet goes to its pod inside GRE (RFC 2784), over IPv4 or IPv6 as the pod has it."""

from kuproxy.codes import Node
from kuproxy.dataplane._jit import kernel
from kuproxy.dataplane.memory import store32
from kuproxy.dataplane.tunnel import enter_tunnel, leave
from kuproxy.wire import ethernet, gre

_NODE = int(Node.GRE)


@kernel
def kp_gre(frame, tables, state, now):
    """Outer IP header and four bytes of GRE."""
    for position in range(frame.queued[_NODE]):
        packet = frame.packets[frame.queue[_NODE, position]]
        at, inner = enter_tunnel(frame, tables, state, packet, _NODE, gre.PROTOCOL, gre.HEADER)
        if at >= 0:
            store32(frame.data, at, (ethernet.IPV4_LE if inner == 4 else ethernet.IPV6_LE) << 16)
            leave(packet, state, _NODE)
