"""ClientIP affinity: which pod a client of a VIP had last (docs/forwarding.md, "Affinity").

One table per worker, in sets of four. A full set gives up the client whose time ends first. An entry whose pod no
longer gets new flows counts as absent.
"""

import numpy as np

from kuproxy.codes import PodFlag
from kuproxy.dataplane._jit import helper, kernel
from kuproxy.dataplane.flow_table import is_live
from kuproxy.dataplane.layout import AFFINITY_SLOTS, AFFINITY_WAYS
from kuproxy.dataplane.memory import crc32c

_ZERO = np.uint64(0)
_USED = int(PodFlag.USED)


@helper
def _set_of(vip_index, hi, lo):
    word = crc32c(crc32c(crc32c(_ZERO, hi), lo), np.uint64(vip_index))
    return np.int64(word) & (AFFINITY_SLOTS - AFFINITY_WAYS)


@helper
def _is(entry, vip_index, generation, hi, lo):
    return (
        np.int64(entry["vip"]) == vip_index
        and np.int64(entry["generation"]) == generation
        and entry["lo"] == lo
        and entry["hi"] == hi
    )


@kernel
def pod_of(tables, state, vip_index, hi, lo, now):
    """Index of the pod that this client had last and may have again, or 0."""
    generation = np.int64(tables.vips[vip_index]["generation"])
    base = _set_of(vip_index, hi, lo)
    for index in range(base, base + AFFINITY_WAYS):
        entry = state.affinity[index]
        if _is(entry, vip_index, generation, hi, lo) and is_live(entry["expires"], now):
            pod = tables.pods[entry["pod"]]
            if pod["generation"] == entry["pod_generation"] and np.int64(pod["flags"]) & _USED:
                return np.int64(entry["pod"])
    return np.int64(0)


@kernel
def remember(tables, state, vip_index, hi, lo, pod_index, now):
    """This client has this pod, for the VIP's affinity time from now."""
    vip = tables.vips[vip_index]
    generation = np.int64(vip["generation"])
    base = _set_of(vip_index, hi, lo)
    chosen = base
    least = np.int64(1) << 62
    for index in range(base, base + AFFINITY_WAYS):
        entry = state.affinity[index]
        if _is(entry, vip_index, generation, hi, lo):
            chosen = index
            break
        left = np.int64(-1)
        if entry["vip"] != 0 and is_live(entry["expires"], now):
            left = (np.int64(entry["expires"]) - now) & 0xFFFFFFFF
        if left < least:
            chosen = index
            least = left
    entry = state.affinity[chosen]
    entry["hi"] = hi
    entry["lo"] = lo
    entry["vip"] = vip_index
    entry["generation"] = generation
    entry["pod"] = pod_index
    entry["pod_generation"] = tables.pods[pod_index]["generation"]
    entry["expires"] = (now + np.int64(vip["affinity"])) & 0xFFFFFFFF
