"""kp-balance: does a known flow go on with this packet, or does it end here and another one begin?"""

import numpy as np

from kuproxy.codes import FlowState, Node, PodFlag, Reason, VipFlag
from kuproxy.dataplane import addresses, choice, flow_table
from kuproxy.dataplane._jit import helper, kernel
from kuproxy.dataplane.flow_state import begins
from kuproxy.dataplane.graph_queue import count
from kuproxy.dataplane.origin import origin_for

_NODE = int(Node.BALANCE)
_RESET = int(VipFlag.RESET)
_USED = int(PodFlag.USED)
_FLUSHED = int(PodFlag.FLUSHED)
_CLOSING = int(FlowState.TCP_CLOSING)


@helper
def may_be_over(tables, state, slot, bits):
    """Is there anything about the flow's pod or its state that `is_over` must look at?"""
    pod_flags = np.int64(tables.pods[state.entries[slot]["pod"]]["flags"])
    if begins(bits):
        return pod_flags != _USED or state.flows[slot]["state"] == _CLOSING
    return pod_flags & _FLUSHED != 0


@kernel
def _serves_client(tables, frame, packet, pod_flags):
    """Does the pod get new flows of this packet's client?"""
    hi, lo = addresses.source(frame.data, packet)
    origin = origin_for(tables, tables.vips[packet["vip"]], np.int64(packet["family"]), hi, lo)
    return choice.serves(pod_flags, origin)


@kernel
def is_over(tables, state, frame, packet, slot, bits):
    """0: the flow goes on; 1: it was forgotten, and the packet begins another; 2: its client is to be reset."""
    pod_flags = np.int64(tables.pods[state.entries[slot]["pod"]]["flags"])
    if pod_flags & _FLUSHED:
        reset = np.int64(tables.vips[state.entries[slot]["vip"]]["flags"]) & _RESET != 0
        flow_table.release(state, slot)
        return 2 if reset and bits >= 0 and not begins(bits) else 1
    if begins(bits) and (
        state.flows[slot]["state"] == _CLOSING or not _serves_client(tables, frame, packet, pod_flags)
    ):
        flow_table.release(state, slot)
        count(state, _NODE, Reason.CHOSEN_AFRESH.value, 1)
        return 1
    return 0
