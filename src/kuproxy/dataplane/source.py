"""Flows whose source is not what the client wrote: masqueraded ones, and those with another source port."""

import numpy as np

from kuproxy.dataplane import addresses, translated
from kuproxy.dataplane._jit import kernel
from kuproxy.dataplane.rewrite import port_is_fixed, rewrite_ipv4, rewrite_ipv6
from kuproxy.wire import ipv4, ipv6, l4


@kernel
def set_source(frame, tables, packet):
    """Write the source that the pod shall see, which kp-balance has left in the record (`slot`, `src_port`).

    Not in the flow: a later packet of the vector may have taken its place.
    """
    port = np.int64(packet["src_port"])
    chosen = np.int64(packet["slot"])
    if packet["family"] == 4:
        address = chosen
        if chosen == 0:
            address = np.int64(addresses.source(frame.data, packet)[1] >> np.uint64(32))
        rewrite_ipv4(frame.data, packet, ipv4.SOURCE, address, l4.SOURCE_PORT, port, 0)
    else:
        hi, lo = addresses.source(frame.data, packet)
        if chosen != 0:
            hi, lo = tables.sources[chosen]["hi"], tables.sources[chosen]["lo"]
        rewrite_ipv6(frame.data, packet, ipv6.SOURCE, hi, lo, l4.SOURCE_PORT, port, 0)


@kernel
def restore_client(frame, packet, flow):
    """Write the client's address and port as a reply's destination.

    False, with nothing written, for a fragment whose checksum cannot follow.
    """
    port = np.int64(flow["client_port"])
    if port_is_fixed(packet["protocol"], np.int64(packet["flags"]), np.int64(packet["dst_port"]), port):
        return False
    if packet["family"] == 4:
        address = np.int64(flow["client_lo"] >> np.uint64(32))
        rewrite_ipv4(frame.data, packet, ipv4.DESTINATION, address, l4.DESTINATION_PORT, port, 0)
    else:
        rewrite_ipv6(
            frame.data,
            packet,
            ipv6.DESTINATION,
            flow["client_hi"],
            flow["client_lo"],
            l4.DESTINATION_PORT,
            port,
            0,
        )
    return True


@kernel
def is_reply(frame, tables, state, packet, now):
    """Is it a reply of a live flow? Asked where an allocated port may also be a node port."""
    pod_hi, pod_lo = addresses.source(frame.data, packet)
    hi, lo = addresses.destination(frame.data, packet)
    slot = translated.find_any_reply(
        tables,
        state,
        np.int64(packet["hash"]),
        pod_hi,
        pod_lo,
        np.int64(packet["src_port"]),
        hi,
        lo,
        np.int64(packet["dst_port"]),
        np.int64(packet["protocol"]),
        np.int64(packet["family"]),
        now,
    )
    return slot >= 0
