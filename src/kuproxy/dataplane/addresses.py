"""A packet's addresses in their table form (two words, IPv4 in the upper half of the second), and its TTL."""

import numpy as np

from kuproxy.dataplane._jit import helper
from kuproxy.dataplane.memory import load8, load32, load64
from kuproxy.wire import ipv4, ipv6

_ZERO = np.uint64(0)


@helper
def _address(data, packet, offset4, offset6):
    l3 = np.int64(packet["start"]) + np.int64(packet["l3"])
    if packet["family"] == 4:
        return _ZERO, np.uint64(load32(data, l3 + offset4)) << np.uint64(32)
    return load64(data, l3 + offset6), load64(data, l3 + offset6 + 8)


@helper
def source(data, packet):
    """(hi, lo) of the source address."""
    return _address(data, packet, ipv4.SOURCE, ipv6.SOURCE)


@helper
def destination(data, packet):
    """(hi, lo) of the destination address."""
    return _address(data, packet, ipv4.DESTINATION, ipv6.DESTINATION)


@helper
def ttl_of(data, packet):
    """TTL or hop limit."""
    l3 = np.int64(packet["start"]) + np.int64(packet["l3"])
    return load8(data, l3 + (ipv4.TTL if packet["family"] == 4 else ipv6.HOP_LIMIT))
