"""kp-lookup: whose packet is it? A VIP's, a node port's, perhaps a pod's reply, or not ours.

docs/forwarding.md, "kp-lookup". Fills `vip`, and fetches the cache line that the next node will read.
"""

import numpy as np

from kuproxy.codes import Node, Outcome, PacketFlag, Reason, VipType
from kuproxy.dataplane._jit import helper, kernel
from kuproxy.dataplane.addresses import destination, source
from kuproxy.dataplane.graph_queue import SEND_ECHO_REPLY, answer, count, enqueue, finish
from kuproxy.dataplane.hash import flow_hash, ports_word
from kuproxy.dataplane.layout import REVERSE_WAYS, T_N_NODEPORTS, T_VIP_MATCH, WAYS
from kuproxy.dataplane.match import find_vip, prepare_vip, vip_address
from kuproxy.dataplane.membership import find_nodeport, is_marked, is_node_address
from kuproxy.dataplane.memory import load16, prefetch, swap16
from kuproxy.dataplane.source import is_reply
from kuproxy.dataplane.translated import in_pool, is_mapped
from kuproxy.wire import icmp

_NODE = int(Node.LOOKUP)
_PASS = int(Outcome.PASS)
_LATER = int(PacketFlag.LATER_FRAGMENT)
_FRAGMENT = int(PacketFlag.FRAGMENT)
_NAT64 = int(VipType.IP6_NAT64)
_NODEPORT = int(PacketFlag.NODEPORT)
_ZERO = np.uint64(0)
_AS_BEFORE = 0xFFFFFFFF  # no table has so many places


@helper
def _may_concern_us(tables, packet, hi, lo):
    """Could an ICMP error to this address be about one of our flows?"""
    if is_marked(tables, packet):
        return True
    family = np.int64(packet["family"])
    if tables.header[T_N_NODEPORTS] != _ZERO and is_node_address(tables, family, hi, lo):
        return True
    return vip_address(tables, hi, lo, family)


@kernel
def _goes_elsewhere(frame, tables, state, location, packet, index):
    """ICMP: True if its way out of here is none of the ways below. Gives NAT64's echoes their identifier as port."""
    flags = np.int64(packet["flags"])
    if flags & _LATER:
        return False
    family = np.int64(packet["family"])
    protocol = np.int64(packet["protocol"])
    at = np.int64(packet["start"]) + np.int64(packet["l4"])
    if (family == 4) != (protocol == 1):
        return False  # the other family's ICMP is some protocol
    kind = int(frame.data[at])
    if icmp.is_link_local_control(family, protocol, kind):
        finish(packet, state, _NODE, _PASS, Reason.UNSUPPORTED_PROTOCOL.value)
        return True
    hi, lo = destination(frame.data, packet)
    if icmp.is_error(family, protocol, kind):
        if _may_concern_us(tables, packet, hi, lo):
            enqueue(frame, Node.ICMP_ERROR.value, index)
        else:
            finish(packet, state, _NODE, _PASS, Reason.NO_VIP.value)
        return True
    if flags & _FRAGMENT or not icmp.is_echo(family, kind):
        return False
    vip = find_vip(tables, location, np.int64(packet["slot"]), hi, lo, family, protocol, 0)
    if vip == 0:
        request = kind == icmp.ECHO_REQUEST4 or kind == icmp.ECHO_REQUEST6
        if request and vip_address(tables, hi, lo, family):
            answer(frame, index, SEND_ECHO_REPLY, 0)
            return True
    elif tables.vips[vip]["type"] == _NAT64 and tables.vips[vip]["encap"] == 0:
        identifier = swap16(load16(frame.data, at + icmp.IDENTIFIER))
        src_hi, src_lo = source(frame.data, packet)
        packet["src_port"] = identifier
        packet["hash"] = np.uint32(
            flow_hash(state, family, src_hi, src_lo, hi, lo, ports_word(identifier, 0))
        )
    return False


@helper
def _in2out_node(tables, family, hi, lo):
    """Which node restores a reply to this address: a client's, or one that stands for a client of the other family."""
    if family == 4:
        return Node.NAT64_IN2OUT.value if in_pool(tables, lo) else Node.NAT4_IN2OUT.value
    return Node.NAT46_IN2OUT.value if is_mapped(tables, hi, lo) else Node.NAT6_IN2OUT.value


@helper
def _prepare(frame, tables, location):
    """First pass: fetch the entries that the second will read; `slot` keeps their places until then.

    Packets come in trains: one to where the packet before it went has the place _AS_BEFORE.
    """
    last_hi, last_lo, last_key = _ZERO, _ZERO, np.int64(-1)
    for position in range(frame.queued[_NODE]):
        packet = frame.packets[frame.queue[_NODE, position]]
        hi, lo = destination(frame.data, packet)
        family, protocol = np.int64(packet["family"]), np.int64(packet["protocol"])
        port = np.int64(packet["dst_port"])
        key = (family << 24) | (protocol << 16) | port
        is_icmp = protocol == 1 or protocol == 58  # they are looked up in other ways besides
        if key == last_key and lo == last_lo and hi == last_hi and not is_icmp:
            packet["slot"] = _AS_BEFORE
        else:
            last_hi, last_lo, last_key = hi, lo, key
            packet["slot"] = prepare_vip(tables, location, hi, lo, family, protocol, port)


@helper
def kp_lookup(frame, tables, state, now):
    """Classify every waiting packet."""
    packets = frame.packets
    waiting = frame.queued[_NODE]
    bucket_mask = len(state.entries) // WAYS - 1
    line_mask = len(state.reverse) // REVERSE_WAYS - 1
    matched = 0
    location = tables.header[T_VIP_MATCH]
    before = np.int64(0)
    _prepare(frame, tables, location)
    for position in range(waiting):
        index = frame.queue[_NODE, position]
        packet = packets[index]
        family = np.int64(packet["family"])
        protocol = np.int64(packet["protocol"])
        if protocol == 1 or protocol == 58:
            if _goes_elsewhere(frame, tables, state, location, packet, index):
                continue
        hi, lo = destination(frame.data, packet)
        place = np.int64(packet["slot"])
        packet["slot"] = 0
        if place == _AS_BEFORE:
            vip = before
        else:
            vip = find_vip(tables, location, place, hi, lo, family, protocol, np.int64(packet["dst_port"]))
            before = vip
        if vip != 0:
            packet["vip"] = vip
            prefetch(state.entries, (np.int64(packet["hash"]) & bucket_mask) * WAYS)
            prefetch(tables.vips, vip)
            prefetch(state.vip_counters, vip * 8)
            enqueue(frame, Node.BALANCE.value, index)
            matched += 1
            continue
        vip = find_nodeport(tables, family, protocol, np.int64(packet["dst_port"]), hi, lo)
        if vip != 0 and not (is_marked(tables, packet) and is_reply(frame, tables, state, packet, now)):
            packet["vip"] = vip
            packet["flags"] = np.int64(packet["flags"]) | _NODEPORT
            enqueue(frame, Node.NODEPORT4.value if family == 4 else Node.NODEPORT6.value, index)
        elif is_marked(tables, packet):
            prefetch(state.reverse, (np.int64(packet["hash"]) & line_mask) * REVERSE_WAYS)
            enqueue(frame, _in2out_node(tables, family, hi, lo), index)
        else:
            finish(packet, state, _NODE, _PASS, Reason.NO_VIP.value)
    if matched != 0:
        count(state, _NODE, Reason.VIP_MATCHED.value, matched)
