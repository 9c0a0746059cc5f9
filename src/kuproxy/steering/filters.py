"""What a packet would meet on its way through the node, beside routing: netfilter's rules and IPsec's policies.

A shortcut passes by the hooks prerouting, forward and postrouting.  Whether anything listens there is asked in several
ways, because no kernel answers for all: nftables lists its base chains; iptables (the old one) names its tables in
proc, as IPVS does its services.  What has rules in sight of nobody (an LSM's packet labels) is not found.
"""

from __future__ import annotations

import struct
from pathlib import Path

from . import netlink

__all__ = ["NFT_GROUP", "filters"]

NETLINK_NETFILTER, NETLINK_XFRM = 12, 6
NFT_GROUP = 1 << 6  # NFNLGRP_NFTABLES
_NFT_GETCHAIN = 10 << 8 | 4  # NFNL_SUBSYS_NFTABLES, NFT_MSG_GETCHAIN
_CHAIN_HOOK, _HOOK_NUMBER = 4, 1
_INET, _IPV4, _NETDEV, _IPV6 = 1, 2, 5, 10
_PREROUTING, _FORWARD, _POSTROUTING, _INGRESS = 0, 2, 4, 5
_XFRM_GETPOLICY = 0x15
_NAMES = ("ip_tables_names", "ip6_tables_names")
_IPVS, _IPVS_HEAD = "ip_vs", 3


def filters(proc: Path = Path("/proc/thread-self/net")) -> list[str]:
    """Who has something to say about forwarded packets, in words; empty: nobody.  Raises SteeringError."""
    found = []
    if _has_chains():
        found.append("netfilter (nftables)")
    if any(_lines(proc / name) for name in _NAMES):
        found.append("netfilter (iptables)")
    if len(_lines(proc / _IPVS)) > _IPVS_HEAD:
        found.append("IPVS")
    if _has_policies():
        found.append("IPsec")
    return found


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:  # this kernel has no such thing
        return []


def _has_chains() -> bool:
    """Base chains at hooks that a shortcut passes by. Those at input and output alone see no forwarded packet."""
    try:
        messages = netlink.dump(NETLINK_NETFILTER, _NFT_GETCHAIN, struct.pack("=BBH", 0, 0, 0))
    except FileNotFoundError:
        return False
    for _, data in messages:
        hook = netlink.nested(netlink.attributes(data, 4), _CHAIN_HOOK)
        if _HOOK_NUMBER in hook:
            (number,) = struct.unpack(">I", hook[_HOOK_NUMBER])
            routed = data[0] in (_INET, _IPV4, _IPV6) and number in (_PREROUTING, _FORWARD, _POSTROUTING, _INGRESS)
            if routed or data[0] == _NETDEV:
                return True
    return False


def _has_policies() -> bool:
    try:
        return bool(netlink.dump(NETLINK_XFRM, _XFRM_GETPOLICY, bytes(64)))
    except FileNotFoundError:
        return False
