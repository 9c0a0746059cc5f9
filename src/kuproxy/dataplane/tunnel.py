"""What the tunnel nodes share: room in front of the packet, and an outer IP header in it.

docs/forwarding.md, "Tunnels". The inner packet is not touched, except that a partial checksum is completed: no device
behind us would look for it inside a tunnel.
"""

import numpy as np

from kuproxy.codes import Outcome, PacketFlag, Reason
from kuproxy.dataplane._jit import helper
from kuproxy.dataplane.checksum import fold
from kuproxy.dataplane.graph_queue import finish
from kuproxy.dataplane.layout import T_TUNNEL_SOURCE, VNET_BYTES, W_TUNNEL_IDENTIFICATION
from kuproxy.dataplane.memory import clear_bytes, load16, load64, store16, store32, store64, swap16, swap32
from kuproxy.dataplane.offload import complete_checksum
from kuproxy.dataplane.worker_choice import next_identification
from kuproxy.wire import ethernet, ipv4, ipv6

IPV4_IN_IP = 4  # IP protocol numbers of what is inside
IPV6_IN_IP = 41

_TTL = 64
_LONGEST = 65535
_VNET = int(PacketFlag.VNET)
_PARTIAL = int(PacketFlag.PARTIAL_CHECKSUM)
_GSO = int(PacketFlag.GSO)
_ZERO = np.uint64(0)


@helper
def _refuse(tables, packet, extra):
    """Reason for which the packet cannot enter its pod's tunnel, or 0."""
    if np.int64(packet["flags"]) & _GSO:
        return Reason.TUNNEL_GSO.value
    inner = np.int64(packet["end"]) - np.int64(packet["l3"])
    source = tables.header
    if tables.pods[packet["pod"]]["family"] == 4:
        if source[T_TUNNEL_SOURCE] == _ZERO:
            return Reason.TUNNEL_NO_SOURCE.value
        inner += ipv4.HEADER
    elif source[T_TUNNEL_SOURCE + 1] == _ZERO and source[T_TUNNEL_SOURCE + 2] == _ZERO:
        return Reason.TUNNEL_NO_SOURCE.value
    return Reason.TUNNEL_TOO_LONG.value if inner + extra > _LONGEST else Reason.NONE.value


@helper
def _move_start(data, packet, size):
    """Let the frame begin `size` bytes earlier, its Ethernet header with it; padding behind the packet goes."""
    start = np.int64(packet["start"])
    moved = start - size
    length = np.int64(packet["l3"])
    if length == ethernet.HEADER:  # two words that overlap by two bytes, both read before either is written
        first, last = load64(data, start), load64(data, start + length - 8)
        store64(data, moved, first)
        store64(data, moved + length - 8, last)
    else:
        # Towards lower addresses: ascending order is right even where the two places overlap.
        for offset in range(length):
            data[moved + offset] = data[start + offset]
    flags = np.int64(packet["flags"])
    if flags & _VNET:
        clear_bytes(data, moved - VNET_BYTES, VNET_BYTES)
        packet["vnet"] = moved - VNET_BYTES
        packet["flags"] = flags & ~_PARTIAL
    packet["start"] = moved
    packet["end"] = np.int64(packet["end"]) + size
    packet["length"] = packet["end"]
    packet["room"] = np.int64(packet["room"]) + size


@helper
def _write_ipv4(tables, state, data, l3, traffic_class, dont_fragment, protocol, total, destination):
    first = 0x0045 | (traffic_class << 8) | (swap16(total) << 16)
    if dont_fragment:
        # An atomic datagram needs no identification (RFC 6864 section 4.1).
        second = swap16(ipv4.DONT_FRAGMENT) << 16
    else:
        second = swap16(next_identification(tables, state, W_TUNNEL_IDENTIFICATION))
    third = _TTL | (protocol << 8)
    source = np.int64(tables.header[T_TUNNEL_SOURCE] >> np.uint64(32))
    target = np.int64(destination >> np.uint64(32))
    store32(data, l3, first)
    store32(data, l3 + ipv4.IDENTIFICATION, second)
    # The words are summed before they are written: loads of another width would wait for the stores.
    store32(data, l3 + ipv4.TTL, third | ((fold(first + second + third + source + target) ^ 0xFFFF) << 16))
    store32(data, l3 + ipv4.SOURCE, source)
    store32(data, l3 + ipv4.DESTINATION, target)


@helper
def _write_ipv6(tables, data, l3, traffic_class, label, protocol, payload, hi, lo):
    store32(data, l3, swap32((6 << 28) | (traffic_class << 20) | label))
    store16(data, l3 + ipv6.PAYLOAD_LENGTH, swap16(payload))
    store16(data, l3 + ipv6.NEXT_HEADER, protocol | (_TTL << 8))
    store64(data, l3 + ipv6.SOURCE, tables.header[T_TUNNEL_SOURCE + 1])
    store64(data, l3 + ipv6.SOURCE + 8, tables.header[T_TUNNEL_SOURCE + 2])
    store64(data, l3 + ipv6.DESTINATION, hi)
    store64(data, l3 + ipv6.DESTINATION + 8, lo)


@helper
def enter_tunnel(frame, tables, state, packet, node, protocol, extra):
    """Put an outer header of the pod's family, and `extra` bytes for the tunnel's own, in front of the packet.

    `protocol` 0 stands for the inner packet itself. Returns (offset of the extra bytes, inner family), or (-1, 0) when
    the packet has ended here. The record then describes the outer packet.
    """
    data = frame.data
    reason = _refuse(tables, packet, extra)
    if reason != 0:
        finish(packet, state, node, Outcome.DROP.value, reason)
        return np.int64(-1), np.int64(0)
    if np.int64(packet["flags"]) & _PARTIAL:
        complete_checksum(data, packet)
    inner_family = np.int64(packet["family"])
    inner_at = np.int64(packet["start"]) + np.int64(packet["l3"])
    payload = np.int64(packet["end"]) - np.int64(packet["l3"]) + extra
    dont_fragment = False
    if inner_family == 4:
        traffic_class = int(data[inner_at + ipv4.TOS])
        dont_fragment = swap16(load16(data, inner_at + ipv4.FRAGMENT)) & ipv4.DONT_FRAGMENT != 0
    else:
        traffic_class = (swap16(load16(data, inner_at)) >> 4) & 0xFF
    if protocol == 0:
        protocol = IPV4_IN_IP if inner_family == 4 else IPV6_IN_IP
    pod = tables.pods[packet["pod"]]
    family = np.int64(pod["family"])
    header = ipv4.HEADER if family == 4 else ipv6.HEADER
    _move_start(data, packet, header + extra)
    l3 = np.int64(packet["start"]) + np.int64(packet["l3"])
    store16(data, l3 - 2, ethernet.IPV4_LE if family == 4 else ethernet.IPV6_LE)
    if family == 4:
        _write_ipv4(
            tables, state, data, l3, traffic_class, dont_fragment, protocol, header + payload, pod["lo"]
        )
    else:
        label = np.int64(packet["hash"]) & 0xFFFFF  # RFC 6438: routers in between spread flows by it
        _write_ipv6(tables, data, l3, traffic_class, label, protocol, payload, pod["hi"], pod["lo"])
    packet["family"] = family
    packet["protocol"] = protocol
    packet["l4"] = np.int64(packet["l3"]) + header
    packet["src_port"] = 0
    packet["dst_port"] = 0
    return l3 + header, inner_family


@helper
def leave(packet, state, node):
    """The packet is whole and goes out."""
    finish(packet, state, node, Outcome.TRANSMIT.value, Reason.ENCAPSULATED.value)
