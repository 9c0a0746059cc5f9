"""Which pod a VIP gives to a client, apart from what the flow table remembers: affinity, then its origin's ring."""

import numpy as np

from kuproxy.codes import HashMode, Origin, PodFlag, VipFlag
from kuproxy.dataplane._jit import helper, kernel
from kuproxy.dataplane.affinity import pod_of
from kuproxy.dataplane.hash import flow_hash
from kuproxy.dataplane.layout import RING_FORMER, RING_INSIDE, RING_LOG2, RING_OUTSIDE, RING_SPLIT

_ZERO = np.uint64(0)
_SOURCE = int(HashMode.SOURCE)
_OUTSIDE = int(Origin.OUTSIDE)
_USED = int(PodFlag.USED)
_FLUSHED = int(PodFlag.FLUSHED)
_NOT_INSIDE = int(PodFlag.NOT_INSIDE)
_NOT_OUTSIDE = int(PodFlag.NOT_OUTSIDE)
_MASQUERADE_SHIFT = int(VipFlag.MASQUERADE_POD).bit_length() - 1


@helper
def ring_hash(state, vip, own_hash, family, client_hi, client_lo):
    """The hash whose low bits are the slot of the new-flow table: the flow's, or the client's address alone."""
    if vip["hash_mode"] == _SOURCE:
        return np.int64(flow_hash(state, family, client_hi, client_lo, _ZERO, _ZERO, _ZERO))
    return own_hash


@helper
def ring_of(vip, origin):
    """(offset, size - 1) of the ring for clients of this origin; offset 0: it has no pods."""
    word = np.int64(vip["ring"])
    size = np.int64(1) << (word & RING_LOG2)
    offset = word >> 8
    kind = word & RING_SPLIT
    if kind != 0:
        if kind & (RING_OUTSIDE if origin == _OUTSIDE else RING_INSIDE) == 0:
            offset = np.int64(0)
        elif kind == RING_SPLIT and origin == _OUTSIDE:
            offset += size
    return offset, size - 1


@helper
def is_bound(vip):
    """Does the client's address alone decide? Then another pod must not be tried for the sake of one flow."""
    return vip["affinity"] != 0 or vip["hash_mode"] == _SOURCE


@helper
def serves(pod_flags, origin):
    """Does the pod get new flows of clients of this origin?"""
    excluded = _NOT_OUTSIDE if origin == _OUTSIDE else _NOT_INSIDE
    return pod_flags & (_USED | excluded) == _USED


@helper
def must_masquerade(vip, pod, origin, client_hi, client_lo):
    """By the VIP's wish, or because the client is the pod: its own reply would never come back here."""
    wished = np.int64(vip["flags"]) >> _MASQUERADE_SHIFT & origin
    return wished != 0 or (pod["lo"] == client_lo and pod["hi"] == client_hi)


@helper
def candidate(tables, state, vip_index, origin, own_hash, family, client_hi, client_lo, now):
    """(pod index, whether affinity chose it); there must be a ring for this origin."""
    vip = tables.vips[vip_index]
    if vip["affinity"] != 0:
        index = pod_of(tables, state, vip_index, client_hi, client_lo, now)
        if index != 0 and serves(np.int64(tables.pods[index]["flags"]), origin):
            return index, True
    offset, mask = ring_of(vip, origin)
    slot = ring_hash(state, vip, own_hash, family, client_hi, client_lo) & mask
    return np.int64(tables.rings[offset + slot]), False


@kernel
def former_owner(tables, state, vip_index, origin, own_hash, family, client_hi, client_lo):
    """Index of the pod that this slot had before the VIP's last change; 0: nobody, or nobody tells any more."""
    vip = tables.vips[vip_index]
    word = np.int64(vip["ring"])  # once: control may change it meanwhile
    kind = word & RING_SPLIT
    which = RING_OUTSIDE if origin == _OUTSIDE else RING_INSIDE
    if word & RING_FORMER == 0 or (kind != 0 and kind & which == 0):
        return np.int64(0)
    size = np.int64(1) << (word & RING_LOG2)
    behind = size  # what lies before this ring: those of the present, and of two former ones the inside's
    if kind == RING_SPLIT:
        behind = 3 * size if which == RING_OUTSIDE else 2 * size
    slot = ring_hash(state, vip, own_hash, family, client_hi, client_lo) & (size - 1)
    index = np.int64(tables.rings[(word >> 8) + behind + slot])
    pod = tables.pods[index]
    # Whoever wrote the tables: never a pod of another VIP.
    if index == 0 or pod["vip"] != vip_index or np.int64(pod["flags"]) & _FLUSHED:
        return np.int64(0)
    return index
