"""Which pod a VIP gives to a client, apart from what the flow table remembers: affinity, then the ring."""

import numpy as np

from kuproxy.codes import HashMode, VipFlag
from kuproxy.dataplane._jit import helper, kernel
from kuproxy.dataplane.affinity import pod_of
from kuproxy.dataplane.hash import hash_words

_ZERO = np.uint64(0)
_SOURCE = int(HashMode.SOURCE)
_MASQUERADE = int(VipFlag.MASQUERADE)


@helper
def ring_hash(vip, flow_hash, family, client_hi, client_lo):
    """The hash whose low bits are the slot of the new-flow table: the flow's, or the client's address alone."""
    if vip["hash_mode"] == _SOURCE:
        return np.int64(hash_words(family, client_hi, client_lo, _ZERO, _ZERO, _ZERO))
    return flow_hash


@helper
def owner_of(tables, vip, slot_hash):
    """Pod index of the ring's slot; the VIP must have a ring."""
    mask = (np.int64(1) << np.int64(vip["ring"] & np.uint64(0xFF))) - 1
    return np.int64(tables.rings[np.int64(vip["ring"] >> np.uint64(8)) + (slot_hash & mask)])


@helper
def is_bound(vip):
    """Does the client's address alone decide? Then another pod must not be tried for the sake of one flow."""
    return vip["affinity"] != 0 or vip["hash_mode"] == _SOURCE


@helper
def must_masquerade(vip, pod, client_hi, client_lo):
    """By the VIP's wish, or because the client is the pod: its own reply would never come back here."""
    return np.int64(vip["flags"]) & _MASQUERADE != 0 or (pod["lo"] == client_lo and pod["hi"] == client_hi)


@kernel
def candidate(tables, state, vip_index, flow_hash, family, client_hi, client_lo, now):
    """(pod index, whether affinity chose it); the VIP must have a ring."""
    vip = tables.vips[vip_index]
    if vip["affinity"] != 0:
        index = pod_of(tables, state, vip_index, client_hi, client_lo, now)
        if index != 0:
            return index, True
    return owner_of(tables, vip, ring_hash(vip, flow_hash, family, client_hi, client_lo)), False
