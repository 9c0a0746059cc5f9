"""kp6-nat6: an IPv6 packet for a VIP becomes one for its pod."""

import numpy as np

from kuproxy.codes import Node, Outcome, Reason
from kuproxy.dataplane._jit import helper
from kuproxy.dataplane.graph_queue import count, finish
from kuproxy.dataplane.layout import T_DECREMENT_TTL, W_OUTCOMES
from kuproxy.dataplane.rewrite import port_is_fixed, rewrite_ipv6
from kuproxy.wire import ipv6, l4

_NODE = int(Node.NAT66)
_TRANSMIT = int(Outcome.TRANSMIT)
_FORWARDED = int(Reason.FORWARDED)


@helper
def kp6_nat6(frame, tables, state, now):
    """Destination address and port, checksums, hop limit."""
    decrement = np.int64(tables.header[T_DECREMENT_TTL])
    forwarded = 0
    for position in range(frame.queued[_NODE]):
        packet = frame.packets[frame.queue[_NODE, position]]
        new_port = np.int64(packet["new_port"])
        if port_is_fixed(
            packet["protocol"], np.int64(packet["flags"]), np.int64(packet["dst_port"]), new_port
        ):
            finish(packet, state, _NODE, Outcome.DROP.value, Reason.SCTP_FRAGMENT.value)
            continue
        pod = tables.pods[packet["pod"]]
        rewrite_ipv6(
            frame.data,
            packet,
            ipv6.DESTINATION,
            pod["hi"],
            pod["lo"],
            l4.DESTINATION_PORT,
            new_port,
            decrement,
        )
        packet["outcome"] = _TRANSMIT
        packet["reason"] = _FORWARDED
        forwarded += 1
    state.header[W_OUTCOMES + _TRANSMIT] += forwarded
    if forwarded != 0:
        count(state, _NODE, _FORWARDED, forwarded)
