"""Restoring replies of flows that found no place in the flow table.

Such a flow's pod follows from the ring alone, so its reply can be recognised by asking the question backwards: would
the ring send the client's packet to this very pod? Only VIPs that have counted untracked packets are asked, so that a
pod's other traffic stays untouched.
"""

import numpy as np

from kuproxy.codes import VipCounter, VipFlag
from kuproxy.dataplane._jit import kernel
from kuproxy.dataplane.choice import candidate, must_masquerade, ring_of
from kuproxy.dataplane.hash import flow_hash, ports_word
from kuproxy.dataplane.layout import KIND_POD, T_MATCH
from kuproxy.dataplane.match import HOST, match_find, match_key
from kuproxy.dataplane.origin import origin_for
from kuproxy.dataplane.translated import find_flow
from kuproxy.wire import l4

_UNTRACKED = int(VipCounter.UNTRACKED_PACKET)
_EVICTED = int(VipCounter.EVICTED)
_USED = int(VipFlag.USED)
_ZERO = np.uint64(0)


@kernel
def _would_choose(tables, state, packet, vip_index, pod_index, client_hi, client_lo, now):
    """Does the ring lead the client's packet to this pod (address and port)? Returns (yes, the VIP's port)."""
    vip = tables.vips[vip_index]
    pod = tables.pods[pod_index]
    family = np.int64(packet["family"])
    origin = origin_for(tables, vip, family, client_hi, client_lo)
    if ring_of(vip, origin)[0] == 0 or must_masquerade(vip, pod, origin, client_hi, client_lo):
        return False, np.int64(0)
    ported = l4.has_ports(packet["protocol"])
    vip_port = np.int64(vip["port"])
    if ported and vip_port == 0:
        vip_port = np.int64(packet["src_port"])
    word = ports_word(np.int64(packet["dst_port"]), vip_port) if ported else _ZERO
    its_hash = np.int64(flow_hash(state, family, client_hi, client_lo, vip["hi"], vip["lo"], word))
    # A client with a flow of its own there has no untracked one: another pod's answer is about something else.
    if (
        find_flow(
            tables,
            state,
            its_hash,
            client_hi,
            client_lo,
            np.int64(packet["dst_port"]) if ported else np.int64(0),
            vip["hi"],
            vip["lo"],
            vip_port if ported else np.int64(0),
            np.int64(packet["protocol"]),
            vip_index,
            now,
        )
        >= 0
    ):
        return False, np.int64(0)
    owner, _ = candidate(tables, state, vip_index, origin, its_hash, family, client_hi, client_lo, now)
    chosen = tables.pods[owner]
    same = chosen["hi"] == pod["hi"] and chosen["lo"] == pod["lo"] and chosen["port"] == pod["port"]
    return same, vip_port


@kernel
def find_untracked(tables, state, packet, pod_hi, pod_lo, client_hi, client_lo, now):
    """(VIP, pod, port to restore) if exactly one VIP's untracked flow can have caused this reply, else zeros."""
    if pod_lo == client_lo and pod_hi == client_hi:
        return np.int64(0), np.int64(0), np.int64(0)  # masqueraded, so never untracked
    location = tables.header[T_MATCH]
    family = np.int64(packet["family"])
    protocol = np.int64(packet["protocol"])
    found = np.int64(0)
    pod = np.int64(0)
    port = np.int64(0)
    pod_port = np.int64(packet["src_port"])
    while True:
        # Pods with a port of their own or of their VIP, then pods that take any.
        key = match_key(KIND_POD, family, HOST, 0, pod_port)
        index = match_find(tables.match, location, pod_hi, pod_lo, key)
        while index != 0:
            vip_index = np.int64(tables.pods[index]["vip"])
            vip = tables.vips[vip_index]
            if (
                np.int64(vip["flags"]) & _USED
                and vip["plen"] == HOST
                and vip["family"] == family
                and vip["encap"] == 0
                and (vip["protocol"] == 0 or vip["protocol"] == protocol)
                and (state.vip_counters[vip_index, _UNTRACKED] | state.vip_counters[vip_index, _EVICTED])
                != _ZERO
            ):
                yes, vip_port = _would_choose(
                    tables, state, packet, vip_index, index, client_hi, client_lo, now
                )
                if yes and vip_index != found:
                    if found != 0:
                        return np.int64(0), np.int64(0), np.int64(0)
                    found = vip_index
                    pod = index
                    port = vip_port
            index = np.int64(tables.pods[index]["next"])
        if pod_port == 0:
            return found, pod, port
        pod_port = np.int64(0)
