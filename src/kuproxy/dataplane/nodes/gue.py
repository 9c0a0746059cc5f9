"""kp-gue: Generic UDP Encapsulation; routers in between see a UDP flow, and spread flows by its source port."""

import numpy as np

from kuproxy.codes import Node, Protocol
from kuproxy.dataplane._jit import kernel
from kuproxy.dataplane.checksum import fold, sum_bytes
from kuproxy.dataplane.memory import store16, store32, swap16
from kuproxy.dataplane.tunnel import IPV4_IN_IP, IPV6_IN_IP, enter_tunnel, leave
from kuproxy.wire import gue, ipv6, l4

_NODE = int(Node.GUE)
_UDP = int(Protocol.UDP)


@kernel
def _udp_checksum6(data, packet, at, length):
    """Over IPv6 it is due (RFC 8200 section 8.1), over IPv4 it is left out (RFC 768), as tunnels do."""
    l3 = np.int64(packet["start"]) + np.int64(packet["l3"])
    total = sum_bytes(data, l3 + ipv6.SOURCE, 32) + swap16(_UDP) + swap16(length)
    checksum = fold(total + sum_bytes(data, at, length)) ^ 0xFFFF
    store16(data, at + l4.UDP_CHECKSUM, checksum if checksum != 0 else 0xFFFF)


@kernel
def kp_gue(frame, tables, state, now):
    """Outer IP and UDP headers and four bytes of GUE."""
    data = frame.data
    for position in range(frame.queued[_NODE]):
        packet = frame.packets[frame.queue[_NODE, position]]
        at, inner = enter_tunnel(frame, tables, state, packet, _NODE, _UDP, gue.ALL)
        if at < 0:
            continue
        source_port = gue.FIRST_SOURCE_PORT | (np.int64(packet["hash"]) & gue.SOURCE_PORT_MASK)
        port = np.int64(tables.vips[packet["vip"]]["gue_port"])
        length = np.int64(packet["start"]) + np.int64(packet["end"]) - at
        store16(data, at + l4.SOURCE_PORT, swap16(source_port))
        store16(data, at + l4.DESTINATION_PORT, swap16(port))
        store32(data, at + l4.UDP_LENGTH, swap16(length))  # and a checksum of zero
        protocol = IPV4_IN_IP if inner == 4 else IPV6_IN_IP
        store32(data, at + l4.UDP_HEADER, protocol << 8)
        if packet["family"] == 6:
            _udp_checksum6(data, packet, at, length)
        packet["src_port"] = source_port
        packet["dst_port"] = port
        leave(packet, state, _NODE)
