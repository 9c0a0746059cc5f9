"""How a new flow is written into the table, whatever it was that chose its pod and its source."""

import numpy as np

from kuproxy.codes import Node, PacketFlag, PodCounter, Reason, VipCounter
from kuproxy.dataplane import addresses, flow_table
from kuproxy.dataplane._jit import helper
from kuproxy.dataplane.flow_state import begin, tcp_bits
from kuproxy.dataplane.graph_queue import count
from kuproxy.dataplane.layout import W_FLOWS
from kuproxy.wire import l4

_NODE = int(Node.BALANCE)
_FIRST = int(VipCounter.FIRST_PACKET)
_EVICTED = int(VipCounter.EVICTED)
_FLOWS = int(PodCounter.FLOWS)
_NEW_FLOW = int(PacketFlag.NEW_FLOW)
_ONE = np.uint64(1)


@helper
def port_at_pod(pod, packet):
    """The port that the pod listens on, for a flow that begins with this packet; 0 for protocols without ports."""
    if not l4.has_ports(packet["protocol"]):
        return np.int64(0)
    port = np.int64(pod["port"])
    return port if port != 0 else np.int64(packet["dst_port"])


@helper
def enter(tables, state, frame, packet, slot, back, line_hash, index, source, source_port, now):
    """Write the flow of this packet into its slot and the record: towards pod `index`, with this source.

    `back` is the free entry of the reverse index, in the line of `line_hash`, the hash of the pod's replies; -1 with
    direct return: no reply comes by, and no line can point here. A flow that still lives in the slot is half-open and
    gives way.
    """
    flow = state.flows[slot]
    entry = state.entries[slot]
    if entry["pod"] != 0:
        state.vip_counters[entry["vip"], _EVICTED] += _ONE
        count(state, _NODE, Reason.HALF_OPEN_EVICTED.value, 1)
        flow_table.release(state, slot)
    vip_index = packet["vip"]
    client_hi, client_lo = addresses.source(frame.data, packet)
    vip_hi, vip_lo = addresses.destination(frame.data, packet)
    pod_port = port_at_pod(tables.pods[index], packet)
    flow["client_hi"] = client_hi
    flow["client_lo"] = client_lo
    flow["vip_hi"] = vip_hi
    flow["vip_lo"] = vip_lo
    flow["client_port"] = packet["src_port"]
    flow["vip_port"] = packet["dst_port"]
    flow["pod_port"] = pod_port
    flow["protocol"] = packet["protocol"]
    flow["family"] = packet["family"]
    flow["generation"] = tables.vips[vip_index]["generation"]
    flow["reverse"] = max(back, 0)
    flow["reverse_hash"] = line_hash
    flow["created"] = now
    flow["source"] = source
    flow["source_port"] = source_port
    entry["hash"] = packet["hash"]
    entry["vip"] = vip_index
    entry["pod"] = index
    if back >= 0:
        state.reverse[back]["hash"] = line_hash
        state.reverse[back]["slot"] = slot + 1
    state.pod_counters[index, _FLOWS] += _ONE
    state.pod_refs[index] += 1
    state.vip_flows[vip_index] += 1
    state.header[W_FLOWS] += 1
    direct = tables.vips[vip_index]["encap"] != 0
    begin(tables, state, slot, tcp_bits(frame.data, packet), direct, now)
    packet["flags"] = np.int64(packet["flags"]) | _NEW_FLOW
    packet["slot"] = slot
    packet["pod"] = index
    packet["new_port"] = pod_port
    state.vip_counters[vip_index, _FIRST] += _ONE
