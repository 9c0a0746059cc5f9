"""What a flow's packets tell about its life: docs/forwarding.md, "Flow state".

TCP's state follows from the flags of both directions; every other protocol has one state for all its life. Nothing is
checked against sequence numbers: any valid sequence of segments passes (RFC 5382 REQ-2), simultaneous open included.
"""

import numpy as np

from kuproxy.codes import FlowFlag, FlowState, PacketFlag, Protocol
from kuproxy.dataplane._jit import helper, kernel
from kuproxy.dataplane.layout import T_FLOW_TIMEOUT, W_STATES
from kuproxy.dataplane.memory import load8
from kuproxy.wire import l4

_LATER = int(PacketFlag.LATER_FRAGMENT)
_CLIENT = int(FlowFlag.CLIENT)
_POD = int(FlowFlag.POD)
_BOTH = _CLIENT | _POD
_CLIENT_FIN = int(FlowFlag.CLIENT_FIN)
_POD_FIN = int(FlowFlag.POD_FIN)
_BOTH_FIN = _CLIENT_FIN | _POD_FIN
_TENTATIVE = int(FlowFlag.TENTATIVE)
_HALF_OPEN = int(FlowState.TCP_HALF_OPEN)
_ESTABLISHED = int(FlowState.TCP_ESTABLISHED)
_CLOSING = int(FlowState.TCP_CLOSING)
_ENDS = l4.TCP_FIN | l4.TCP_RST
_NEW = l4.TCP_SYN | l4.TCP_ACK | _ENDS


@helper
def tcp_bits(data, packet):
    """The flags of a TCP segment; -1 for other protocols and for later fragments, which do not hold them."""
    if packet["protocol"] != Protocol.TCP.value or np.int64(packet["flags"]) & _LATER:
        return np.int64(-1)
    return load8(data, np.int64(packet["start"]) + np.int64(packet["l4"]) + l4.TCP_FLAGS)


@helper
def begins(bits):
    """Is it a client's request for a new connection: SYN, and neither ACK, RST nor FIN?"""
    return bits >= 0 and bits & _NEW == l4.TCP_SYN


@helper
def goes_on(bits):
    """Is it a segment in the midst of a connection: ACK, and neither SYN nor RST?"""
    return bits >= 0 and bits & (l4.TCP_SYN | l4.TCP_RST | l4.TCP_ACK) == l4.TCP_ACK


@helper
def refuses(bits):
    """Is it what a pod that knows no such connection answers such a segment with: RST without ACK?

    RFC 9293 section 3.10.7.1. Who ends a connection that he knows says ACK as well (section 3.10.5), and so does who
    refuses a new one.
    """
    return bits & (l4.TCP_RST | l4.TCP_ACK) == l4.TCP_RST


@helper
def _after(flags, bits, from_client):
    """FlowFlag bits after a segment."""
    if bits & l4.TCP_RST:
        return flags & ~_BOTH
    if from_client:
        if bits & (l4.TCP_ACK | l4.TCP_SYN) == l4.TCP_ACK:
            flags |= _CLIENT
        if bits & l4.TCP_FIN:
            flags |= _CLIENT_FIN
    else:
        flags |= _POD
        if bits & l4.TCP_FIN:
            flags |= _POD_FIN
    return flags


@helper
def first_state(protocol, family):
    """FlowState of a flow that begins, whatever its first packet says."""
    if protocol == Protocol.TCP.value:
        return _HALF_OPEN
    if protocol == Protocol.UDP.value:
        return FlowState.UDP.value
    if protocol == Protocol.SCTP.value:
        return FlowState.SCTP.value
    if (protocol == Protocol.ICMP.value and family == 4) or (
        protocol == Protocol.ICMP6.value and family == 6
    ):
        return FlowState.ICMP.value
    return FlowState.OTHER.value


@helper
def begin(tables, state, slot, bits, direct, now):
    """State, flags and expiry of a flow that was just entered. `direct`: its replies do not come this way."""
    flow = state.flows[slot]
    kind = first_state(np.int64(flow["protocol"]), np.int64(flow["family"]))
    flags = np.int64(_POD | _POD_FIN) if direct else np.int64(0)
    if bits >= 0:
        flags = _after(flags, bits, True)
        if bits & l4.TCP_RST or flags & _BOTH_FIN == _BOTH_FIN:
            kind = _CLOSING
    flow["state"] = kind
    flow["flags"] = flags
    state.entries[slot]["expires"] = (now + np.int64(tables.header[T_FLOW_TIMEOUT + kind])) & 0xFFFFFFFF
    state.header[W_STATES + kind] += 1


@kernel
def _turn(tables, state, slot, bits, from_client, now):
    """A segment that may change the state. A closing flow's end stays where it is (RFC 6146 section 3.5.2.2)."""
    flow = state.flows[slot]
    old = np.int64(flow["state"])
    flags = _after(np.int64(flow["flags"]), bits, from_client)
    if not from_client:
        flags &= ~_TENTATIVE
    flow["flags"] = flags
    kind = old
    if bits & l4.TCP_RST or flags & _BOTH_FIN == _BOTH_FIN:
        kind = _CLOSING
    elif flags & _BOTH == _BOTH:
        kind = _ESTABLISHED
    if kind != old:
        flow["state"] = kind
        state.header[W_STATES + old] -= 1
        state.header[W_STATES + kind] += 1
    elif kind == _CLOSING:
        return
    state.entries[slot]["expires"] = (now + np.int64(tables.header[T_FLOW_TIMEOUT + kind])) & 0xFFFFFFFF


@helper
def touch(tables, state, slot, bits, from_client, now):
    """A packet of a known flow: what it changes, and how long the flow is remembered from here."""
    flow = state.flows[slot]
    # Established, and nothing ends: most segments say nothing new.
    if bits >= 0 and (bits & _ENDS != 0 or np.int64(flow["state"]) != _ESTABLISHED):
        _turn(tables, state, slot, bits, from_client, now)
    else:
        kind = np.int64(flow["state"])
        if kind != _CLOSING:
            expires = np.uint32((now + np.int64(tables.header[T_FLOW_TIMEOUT + kind])) & 0xFFFFFFFF)
            if state.entries[slot]["expires"] != expires:  # once a tick: most packets leave the line clean
                state.entries[slot]["expires"] = expires
