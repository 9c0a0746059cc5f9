"""kp-l3dsr: the packet is addressed to the pod, and its DSCP tells the pod which VIP it was for.

The pod puts the VIP back and answers the client itself. Nothing grows, so segments of 64 KiB stay whole.
"""

import numpy as np

from kuproxy.codes import Node, Outcome, Reason
from kuproxy.dataplane._jit import helper, kernel
from kuproxy.dataplane.checksum import change16, update
from kuproxy.dataplane.graph_queue import finish
from kuproxy.dataplane.layout import T_DECREMENT_TTL
from kuproxy.dataplane.memory import load16, store16, swap16
from kuproxy.dataplane.rewrite import rewrite_ipv4, rewrite_ipv6
from kuproxy.wire import ipv4, ipv6, l4

_NODE = int(Node.L3DSR)


@helper
def _set_dscp(data, l3, family, dscp):
    """The upper six bits of TOS or traffic class (RFC 2474); the lower two, ECN, stay (RFC 3168)."""
    old = load16(data, l3)
    if family == 4:
        new = (old & 0x03FF) | (dscp << 10)
        store16(data, l3, new)
        update(data, l3 + ipv4.CHECKSUM, change16(old, new))
    else:
        store16(data, l3, swap16((swap16(old) & 0xF03F) | (dscp << 6)))


@kernel
def kp_l3dsr(frame, tables, state, now):
    """Destination address, DSCP, checksums, TTL; the port stays."""
    data = frame.data
    decrement = np.int64(tables.header[T_DECREMENT_TTL])
    for position in range(frame.queued[_NODE]):
        packet = frame.packets[frame.queue[_NODE, position]]
        pod = tables.pods[packet["pod"]]
        port = np.int64(packet["dst_port"])
        if packet["family"] == 4:
            address = np.int64(pod["lo"] >> np.uint64(32))
            rewrite_ipv4(data, packet, ipv4.DESTINATION, address, l4.DESTINATION_PORT, port, decrement)
        else:
            rewrite_ipv6(
                data, packet, ipv6.DESTINATION, pod["hi"], pod["lo"], l4.DESTINATION_PORT, port, decrement
            )
        l3 = np.int64(packet["start"]) + np.int64(packet["l3"])
        dscp = np.int64(tables.vips[packet["vip"]]["dscp"])
        _set_dscp(data, l3, np.int64(packet["family"]), dscp)
        finish(packet, state, _NODE, Outcome.TRANSMIT.value, Reason.FORWARDED.value)
