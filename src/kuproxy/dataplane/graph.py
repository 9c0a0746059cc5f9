"""The graph: its nodes in order, and run_graph, the one way of every packet.

A vector visits the nodes one after another; a node takes the packets that wait in its queue and hands each to the queue
of a later node, or ends it. Vectors without packets for a node pay one comparison for it.

The nodes that nearly every packet visits are inlined (`@helper`): a call hands over some 150 words of arrays, which a
vector of one packet pays as well as one of 192.
"""

import numpy as np

from kuproxy.codes import Node
from kuproxy.dataplane._jit import kernel
from kuproxy.dataplane.flow_table import sweep
from kuproxy.dataplane.layout import META_COUNT, N_NODES, W_NOW, W_VECTORS, W_VISITS
from kuproxy.dataplane.nodes.balance import kp_balance
from kuproxy.dataplane.nodes.fragment import expire_held, kp_fragment, recycle_held
from kuproxy.dataplane.nodes.gre import kp_gre
from kuproxy.dataplane.nodes.gue import kp_gue
from kuproxy.dataplane.nodes.icmp import kp_icmp
from kuproxy.dataplane.nodes.icmp_error import kp_icmp_error
from kuproxy.dataplane.nodes.in2out import kp_nat4_in2out, kp_nat6_in2out
from kuproxy.dataplane.nodes.input import kp_input
from kuproxy.dataplane.nodes.ipip import kp_ipip
from kuproxy.dataplane.nodes.l3dsr import kp_l3dsr
from kuproxy.dataplane.nodes.lookup import kp_lookup
from kuproxy.dataplane.nodes.masquerade import kp_masquerade
from kuproxy.dataplane.nodes.nat44 import kp4_nat4
from kuproxy.dataplane.nodes.nat46 import kp4_nat6, kp_nat46_in2out
from kuproxy.dataplane.nodes.nat64 import kp6_nat4, kp_nat64_in2out
from kuproxy.dataplane.nodes.nat66 import kp6_nat6
from kuproxy.dataplane.nodes.nodeport import kp4_nodeport, kp6_nodeport
from kuproxy.dataplane.nodes.reject import kp_reject
from kuproxy.dataplane.trace import begin_trace, trace_node

# The table that the completeness test, the documentation and the drawing read. run_graph below is the same, spelled
# out, because a compiled loop over functions would cost an indirect call a node.
NODES = {
    Node.INPUT: kp_input,
    Node.FRAGMENT: kp_fragment,
    Node.LOOKUP: kp_lookup,
    Node.ICMP_ERROR: kp_icmp_error,
    Node.NODEPORT4: kp4_nodeport,
    Node.NODEPORT6: kp6_nodeport,
    Node.BALANCE: kp_balance,
    Node.MASQUERADE: kp_masquerade,
    Node.NAT44: kp4_nat4,
    Node.NAT66: kp6_nat6,
    Node.NAT46: kp4_nat6,
    Node.NAT64: kp6_nat4,
    Node.NAT4_IN2OUT: kp_nat4_in2out,
    Node.NAT6_IN2OUT: kp_nat6_in2out,
    Node.NAT46_IN2OUT: kp_nat46_in2out,
    Node.NAT64_IN2OUT: kp_nat64_in2out,
    Node.REJECT: kp_reject,
    Node.GRE: kp_gre,
    Node.IPIP: kp_ipip,
    Node.GUE: kp_gue,
    Node.L3DSR: kp_l3dsr,
    Node.ICMP: kp_icmp,
}

# NumPy's integers, because Numba would compile trace_node anew for each of Python's that it is called with.
_INPUT = np.int64(Node.INPUT)
_FRAGMENT = np.int64(Node.FRAGMENT)
_LOOKUP = np.int64(Node.LOOKUP)
_NODEPORT4 = np.int64(Node.NODEPORT4)
_NODEPORT6 = np.int64(Node.NODEPORT6)
_BALANCE = np.int64(Node.BALANCE)
_NAT44 = np.int64(Node.NAT44)
_NAT66 = np.int64(Node.NAT66)
_NAT4_IN2OUT = np.int64(Node.NAT4_IN2OUT)
_NAT6_IN2OUT = np.int64(Node.NAT6_IN2OUT)
_REJECT = np.int64(Node.REJECT)
_GRE = np.int64(Node.GRE)
_IPIP = np.int64(Node.IPIP)
_GUE = np.int64(Node.GUE)
_L3DSR = np.int64(Node.L3DSR)
_MASQUERADE = np.int64(Node.MASQUERADE)
_ICMP_ERROR = np.int64(Node.ICMP_ERROR)
_NAT46 = np.int64(Node.NAT46)
_NAT64 = np.int64(Node.NAT64)
_NAT46_IN2OUT = np.int64(Node.NAT46_IN2OUT)
_NAT64_IN2OUT = np.int64(Node.NAT64_IN2OUT)
_ICMP = np.int64(Node.ICMP)


@kernel
def run_graph(frame, tables, state, now):
    """Take packets[0:meta[META_COUNT]] to their outcomes at time `now` (ticks, int64 below 2^32).

    Reads packets' start, length, room, interface, flags and vnet; expects the rest zeroed; may append released
    fragments behind, raising META_COUNT.
    """
    state.header[W_NOW] = now
    state.header[W_VECTORS] += 1
    for node in range(N_NODES):
        frame.queued[node] = 0
    recycle_held(state)
    traced = begin_trace(frame, state)
    state.header[W_VISITS + _INPUT] += frame.meta[META_COUNT]
    kp_input(frame, tables, state, now)
    if traced:
        trace_node(frame, tables, state, now, _INPUT)
    if frame.queued[_FRAGMENT] != 0:
        kp_fragment(frame, tables, state, now)
        if traced:
            trace_node(frame, tables, state, now, _FRAGMENT)
    if frame.queued[_LOOKUP] != 0:
        kp_lookup(frame, tables, state, now)
        if traced:
            trace_node(frame, tables, state, now, _LOOKUP)
    if frame.queued[_ICMP_ERROR] != 0:
        kp_icmp_error(frame, tables, state, now)
        if traced:
            trace_node(frame, tables, state, now, _ICMP_ERROR)
    if frame.queued[_NODEPORT4] != 0:
        kp4_nodeport(frame, tables, state, now)
        if traced:
            trace_node(frame, tables, state, now, _NODEPORT4)
    if frame.queued[_NODEPORT6] != 0:
        kp6_nodeport(frame, tables, state, now)
        if traced:
            trace_node(frame, tables, state, now, _NODEPORT6)
    if frame.queued[_BALANCE] != 0:
        kp_balance(frame, tables, state, now)
        if traced:
            trace_node(frame, tables, state, now, _BALANCE)
    if frame.queued[_MASQUERADE] != 0:
        kp_masquerade(frame, tables, state, now)
        if traced:
            trace_node(frame, tables, state, now, _MASQUERADE)
    if frame.queued[_NAT44] != 0:
        kp4_nat4(frame, tables, state, now)
        if traced:
            trace_node(frame, tables, state, now, _NAT44)
    if frame.queued[_NAT66] != 0:
        kp6_nat6(frame, tables, state, now)
        if traced:
            trace_node(frame, tables, state, now, _NAT66)
    if frame.queued[_NAT46] != 0:
        kp4_nat6(frame, tables, state, now)
        if traced:
            trace_node(frame, tables, state, now, _NAT46)
    if frame.queued[_NAT64] != 0:
        kp6_nat4(frame, tables, state, now)
        if traced:
            trace_node(frame, tables, state, now, _NAT64)
    if frame.queued[_NAT4_IN2OUT] != 0:
        kp_nat4_in2out(frame, tables, state, now)
        if traced:
            trace_node(frame, tables, state, now, _NAT4_IN2OUT)
    if frame.queued[_NAT6_IN2OUT] != 0:
        kp_nat6_in2out(frame, tables, state, now)
        if traced:
            trace_node(frame, tables, state, now, _NAT6_IN2OUT)
    if frame.queued[_NAT46_IN2OUT] != 0:
        kp_nat46_in2out(frame, tables, state, now)
        if traced:
            trace_node(frame, tables, state, now, _NAT46_IN2OUT)
    if frame.queued[_NAT64_IN2OUT] != 0:
        kp_nat64_in2out(frame, tables, state, now)
        if traced:
            trace_node(frame, tables, state, now, _NAT64_IN2OUT)
    if frame.queued[_REJECT] != 0:
        kp_reject(frame, tables, state, now)
        if traced:
            trace_node(frame, tables, state, now, _REJECT)
    if frame.queued[_GRE] != 0:
        kp_gre(frame, tables, state, now)
        if traced:
            trace_node(frame, tables, state, now, _GRE)
    if frame.queued[_IPIP] != 0:
        kp_ipip(frame, tables, state, now)
        if traced:
            trace_node(frame, tables, state, now, _IPIP)
    if frame.queued[_GUE] != 0:
        kp_gue(frame, tables, state, now)
        if traced:
            trace_node(frame, tables, state, now, _GUE)
    if frame.queued[_L3DSR] != 0:
        kp_l3dsr(frame, tables, state, now)
        if traced:
            trace_node(frame, tables, state, now, _L3DSR)
    if frame.queued[_ICMP] != 0:
        kp_icmp(frame, tables, state, now)
        if traced:
            trace_node(frame, tables, state, now, _ICMP)
    # A node's queue stays as it was filled: here they are counted all at once, whichever were visited.
    for node in range(N_NODES):
        state.header[W_VISITS + node] += frame.queued[node]


@kernel
def run_maintenance(tables, state, now, buckets):
    """Between vectors: release what expired in the next `buckets` buckets, drop fragments that waited too long."""
    state.header[W_NOW] = now
    sweep(tables, state, now, buckets)
    expire_held(state, now)
