"""Where a client is: a pod, the node itself, or outside (codes.Origin, docs/adr/010-decisions-by-origin.md).

Asked for the first packet of a flow alone, and only for VIPs that treat clients unlike. Pods are asked for before the
node, as kube-proxy does: the node's address on the pods' bridge lies in the pods' prefix.
"""

import numpy as np

from kuproxy.codes import Origin, VipFlag
from kuproxy.dataplane._jit import helper, kernel
from kuproxy.dataplane.layout import (
    RING_SPLIT,
    T_NODE_RANGES4,
    T_NODE_RANGES6,
    T_POD_RANGES4,
    T_POD_RANGES6,
)
from kuproxy.dataplane.source_ranges import is_allowed

_POD = int(Origin.POD)
_NODE = int(Origin.NODE)
_OUTSIDE = int(Origin.OUTSIDE)
_MASQUERADE = int(VipFlag.MASQUERADE)
_SPLIT = np.uint64(RING_SPLIT)
_ZERO = np.uint64(0)


@kernel
def origin_of(tables, family, hi, lo):
    """Origin of this address, one bit."""
    pods = np.int64(tables.header[T_POD_RANGES4 if family == 4 else T_POD_RANGES6])
    if pods != 0 and is_allowed(tables, pods, hi, lo):
        return np.int64(_POD)
    node = np.int64(tables.header[T_NODE_RANGES4 if family == 4 else T_NODE_RANGES6])
    if node != 0 and is_allowed(tables, node, hi, lo):
        return np.int64(_NODE)
    return np.int64(_OUTSIDE)


@helper
def tells_apart(vip):
    """Does the VIP treat clients unlike, by their origin?"""
    masquerade = np.int64(vip["flags"]) & _MASQUERADE
    return vip["ring"] & _SPLIT != _ZERO or (masquerade != 0 and masquerade != _MASQUERADE)


@helper
def origin_for(tables, vip, family, hi, lo):
    """Origin of a client of this VIP; OUTSIDE where the VIP does not care."""
    if tells_apart(vip):
        return origin_of(tables, family, hi, lo)
    return np.int64(_OUTSIDE)
