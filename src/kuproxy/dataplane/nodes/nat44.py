"""kp4-nat4: an IPv4 packet for a VIP becomes one for its pod."""

import numpy as np

from kuproxy.codes import Node, Outcome, Reason
from kuproxy.dataplane._jit import helper
from kuproxy.dataplane.graph_queue import count, finish
from kuproxy.dataplane.layout import T_DECREMENT_TTL, W_OUTCOMES
from kuproxy.dataplane.rewrite import port_is_fixed, rewrite_ipv4
from kuproxy.wire import ipv4, l4

_NODE = int(Node.NAT44)
_TRANSMIT = int(Outcome.TRANSMIT)
_FORWARDED = int(Reason.FORWARDED)


@helper
def kp4_nat4(frame, tables, state, now):
    """Destination address and port, checksums, TTL."""
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
        address = np.int64(tables.pods[packet["pod"]]["lo"] >> np.uint64(32))
        rewrite_ipv4(frame.data, packet, ipv4.DESTINATION, address, l4.DESTINATION_PORT, new_port, decrement)
        packet["outcome"] = _TRANSMIT
        packet["reason"] = _FORWARDED
        forwarded += 1
    state.header[W_OUTCOMES + _TRANSMIT] += forwarded
    if forwarded != 0:
        count(state, _NODE, _FORWARDED, forwarded)
