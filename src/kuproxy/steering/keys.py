"""The keys of the steering maps: what user space writes and the BPF program looks up.

A key of the map `steer` has 20 bytes: address (16, IPv4 in the last four), port (2, network byte order), protocol
(1), and a byte of bits: `RETURN` for the source of a reply, `IPV6` for the family.  The family is a bit of its own,
so that ::10.0.0.1 and 10.0.0.1 are two entries.  A key of the prefix map is the length in bits (4, the machine's
byte order), the family's byte, and the address; the length counts the family's byte too.  There, `TRANSLATED` stands
beside the family: such a prefix is not a VIP's, and packets to it are replies.

Wildcards are entries like others, found by further lookups: port 0 with protocol 0 is the whole address; port 0
with protocol `FRAGMENT` is what a fragment is looked up by, because it carries no ports.

A key of the map `fragments` names a datagram: source and destination (16 each), identification (4, as it lies in the
packet), IPv4's protocol (in IPv6 0: fragments of one datagram may disagree, RFC 8200 section 4.5), the family's byte,
two zeros.
"""

from __future__ import annotations

import functools
import struct
from enum import IntEnum, IntFlag
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from ..codes import PROTOCOLS_WITH_PORTS

__all__ = [
    "FRAGMENT",
    "FRAGMENT_KEY_SIZE",
    "MARK4",
    "MARK6",
    "PREFIX_KEY_SIZE",
    "RELATED_SIZE",
    "STEER_KEY_SIZE",
    "Address",
    "ConfigBit",
    "Count",
    "KeyBit",
    "Network",
    "endpoint_keys",
    "is_return",
    "is_translated",
    "network_keys",
    "prefix_key",
    "steer_key",
]

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

STEER_KEY_SIZE = 20
PREFIX_KEY_SIZE = 4 + 1 + 16
FRAGMENT_KEY_SIZE = 40
_ZEROS = bytes(12)  # in front of an IPv4 address
FRAGMENT = 255  # as a protocol: reserved by IANA; a packet that bears it nonetheless counts as a fragment

# A value of the map `related` says of an interface (its index is the key) which others stand for it: the index of its
# master (bridge, bond, VRF; 0: none), whether the program sees its packets once more there, and the number of a group
# of interfaces that share routes (0: none); 4 bytes each, and 4 zeros.
RELATED_SIZE = 16

# Values of the map `interfaces`, equal to codes.InterfaceFlag: which families' replies are looked up there.
MARK4, MARK6 = 1, 2


class KeyBit(IntFlag):
    """Bits of a key's last byte."""

    RETURN = 1
    IPV6 = 2
    TRANSLATED = 4  # of a prefix: what clients are called at pods of the other family


_RETURN = int(KeyBit.RETURN)  # arithmetic with members is ten times slower


class ConfigBit(IntFlag):
    """Bits of the only word of the map `config`."""

    PREFIXES = 1  # the prefix map is not empty
    MARKED = 2  # replies are looked up only on the interfaces that the map `interfaces` names
    LOCAL_PODS = 4  # some pod has an address of the node: its replies come in nowhere
    TRANSLATED = 16  # the prefix map has such prefixes
    STRICT = 8  # without MARKED: replies are taken only where the node would send to their pod (reply_path.py)


class Count(IntEnum):
    """Indices of the per-CPU array `counts`."""

    FORWARD = 0
    RETURN = 1
    FOREIGN = 2
    REFUSED = 3


def steer_key(address: Address, port: int, protocol: int, returning: bool = False) -> bytes:
    bits = (KeyBit.IPV6 if address.version == 6 else 0) | (KeyBit.RETURN if returning else 0)
    return struct.pack(">16sHBB", address.packed.rjust(16, b"\0"), port, protocol, bits)


def is_return(key: bytes) -> bool:
    """Whether a key of `steer` is about replies. Keys of prefixes never are."""
    return len(key) == STEER_KEY_SIZE and key[19] & _RETURN == _RETURN


def is_translated(key: bytes) -> bool:
    """Whether a key of the prefix map is about translated clients."""
    return len(key) == PREFIX_KEY_SIZE and key[4] & KeyBit.TRANSLATED != 0


def prefix_key(network: Network, translated: bool = False) -> bytes:
    """Data of a longest-prefix-match trie: `struct bpf_lpm_trie_key_u8`."""
    family = (KeyBit.IPV6 if network.version == 6 else 0) | (KeyBit.TRANSLATED if translated else 0)
    length = 8 + network.prefixlen + (0 if network.version == 6 else 96)
    return struct.pack("=IB16s", length, family, network.network_address.packed.rjust(16, b"\0"))


@functools.lru_cache(4096)
def _endings(protocol: int, port: int, bits: int) -> tuple[bytes, ...]:
    """What the keys of `endpoint_keys` have behind the address."""
    if port:
        protocols = (protocol,) if protocol else PROTOCOLS_WITH_PORTS
    else:
        protocols = (0 if protocol == 0 or protocol in PROTOCOLS_WITH_PORTS else protocol,)
    return (
        struct.pack(">HBB", 0, FRAGMENT, bits),
        *(struct.pack(">HBB", port, each, bits) for each in protocols),
    )


def endpoint_keys(address: Address, protocol: int, port: int, returning: bool = False) -> list[bytes]:
    """The entries that steer one address, protocol and port; protocol 0 means every protocol with ports.

    Port 0 is the whole address when the protocol has ports (the workers look more closely and pass on what is
    not theirs), else just that protocol.
    """
    bits = _RETURN if returning else 0
    start = address.packed
    if address.version == 6:
        bits |= KeyBit.IPV6
    else:
        start = _ZEROS + start
    return [start + ending for ending in _endings(protocol, port, bits)]


def network_keys(network: Network, protocol: int, port: int) -> list[bytes]:
    """The entries for a VIP: of a single address as above; of a wider prefix one, whatever protocol and port."""
    if network.prefixlen == network.max_prefixlen:
        return endpoint_keys(network.network_address, protocol, port)
    return [prefix_key(network)]
