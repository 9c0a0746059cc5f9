"""Packets and bytes per VIP and per pod, both ways.

Packets to pods are counted where a pod is found (the VIP's own three packet counters are written there anyway),
packets from pods where they are restored. Bytes are the IP total length as received, so that the sums are those of a
capture in front of us: what a tunnel adds is not in them, nor what a translation between families changes. A GSO frame
is one packet.
"""

import numpy as np

from kuproxy.codes import PodCounter, VipCounter
from kuproxy.dataplane._jit import helper

_VIP_TO_BYTES = int(VipCounter.TO_POD_BYTES)
_VIP_FROM = int(VipCounter.FROM_POD_PACKETS)
_VIP_FROM_BYTES = int(VipCounter.FROM_POD_BYTES)
_POD_TO = int(PodCounter.TO_POD_PACKETS)
_POD_TO_BYTES = int(PodCounter.TO_POD_BYTES)
_POD_FROM = int(PodCounter.FROM_POD_PACKETS)
_POD_FROM_BYTES = int(PodCounter.FROM_POD_BYTES)
_ONE = np.uint64(1)


@helper
def _ip_length(packet):
    return np.uint64(np.int64(packet["end"]) - np.int64(packet["l3"]))


@helper
def tally_to_pod(state, packet):
    """A packet for the record's VIP was given to the record's pod. Call it before the packet is rewritten."""
    size = _ip_length(packet)
    vip, pod = packet["vip"], packet["pod"]
    state.vip_counters[vip, _VIP_TO_BYTES] += size
    state.pod_counters[pod, _POD_TO] += _ONE
    state.pod_counters[pod, _POD_TO_BYTES] += size


@helper
def tally_from_pod(state, packet):
    """A reply of the record's pod goes back in the name of the record's VIP. Call it before the packet is rewritten."""
    size = _ip_length(packet)
    vip, pod = packet["vip"], packet["pod"]
    state.vip_counters[vip, _VIP_FROM] += _ONE
    state.vip_counters[vip, _VIP_FROM_BYTES] += size
    state.pod_counters[pod, _POD_FROM] += _ONE
    state.pod_counters[pod, _POD_FROM_BYTES] += size
