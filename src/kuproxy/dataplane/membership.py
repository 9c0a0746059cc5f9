"""Questions that several nodes ask of the tables: is this interface marked, is this address a pod's or the node's?"""

import numpy as np

from kuproxy.codes import InterfaceFlag
from kuproxy.dataplane._jit import helper
from kuproxy.dataplane.layout import (
    KIND_NODE_ADDRESS,
    KIND_NODEPORT,
    KIND_POD_ADDRESS,
    T_ANY_NODE_ADDRESS,
    T_MATCH,
    T_N_NODEPORTS,
)
from kuproxy.dataplane.match import HOST, match_find, match_key
from kuproxy.wire import l4

_NAT4_IN = int(InterfaceFlag.NAT4_IN)
_NAT6_IN = int(InterfaceFlag.NAT6_IN)
_ZERO = np.uint64(0)


@helper
def is_marked(tables, packet):
    """Does the packet's interface carry traffic of pods in the packet's family?"""
    mark = _NAT4_IN if packet["family"] == 4 else _NAT6_IN
    return np.int64(tables.interfaces[packet["interface"]]) & mark != 0


@helper
def is_pod_address(tables, packet, hi, lo):
    """Is it the address of some pod, whatever the port?"""
    key = match_key(KIND_POD_ADDRESS, np.int64(packet["family"]), HOST, 0, 0)
    return match_find(tables.match, tables.header[T_MATCH], hi, lo, key) != 0


@helper
def is_node_address(tables, family, hi, lo):
    """Is it an address of the node? Loopback never is (Kubernetes refuses node ports there)."""
    if family == 4 and (lo >> np.uint64(32)) & np.uint64(0xFF) == np.uint64(127):
        return False
    if family == 6 and hi == _ZERO and lo == np.uint64(1 << 56):
        return False
    if tables.header[T_ANY_NODE_ADDRESS] != _ZERO:
        return True
    key = match_key(KIND_NODE_ADDRESS, family, HOST, 0, 0)
    return match_find(tables.match, tables.header[T_MATCH], hi, lo, key) != 0


@helper
def find_nodeport(tables, family, protocol, port, hi, lo):
    """The VIP that owns this node port, if the address is the node's, or 0."""
    if tables.header[T_N_NODEPORTS] == _ZERO or not l4.has_ports(protocol):
        return np.int64(0)
    key = match_key(KIND_NODEPORT, family, HOST, protocol, port)
    vip = match_find(tables.match, tables.header[T_MATCH], _ZERO, _ZERO, key)
    if vip != 0 and not is_node_address(tables, family, hi, lo):
        return np.int64(0)
    return vip
