"""The Maglev table: which slot of the ring belongs to which pod (Eisenbud et al., NSDI 2016, section 3.4).

VPP's variant: the size is a power of two instead of a prime, and the step an odd number, so that every pod's
sequence of slots still visits all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction
from itertools import count
from math import floor

from kuproxy.model.vip import Address, Pod
from kuproxy.reference.hashes import xxh64_word


def address_bytes(address: Address) -> bytes:
    """16 bytes; IPv4 in the last four."""
    return address.packed.rjust(16, b"\0")


def in_ring_order(pods: Iterable[Pod]) -> list[Pod]:
    """By address, then port: the ring must not depend on the order in which pods were added."""
    return sorted(pods, key=lambda pod: (address_bytes(pod.address), pod.port))


def maglev_ring(pods: Iterable[Pod], new_len: int, weights: Sequence[int] = ()) -> list[int]:
    """For each of `new_len` slots the position of its pod in `in_ring_order(pods)`; empty without pods.

    Pods take slots in turn, each the first free one of its own sequence, until none is free.  With more pods than
    slots, those behind the first `new_len` get none.  With weights (above 0, in the pods' order) the heaviest takes
    part in every turn, the others in as many as their weight says, evenly spread.
    """
    ordered = in_ring_order(pods)
    if not ordered:
        return []
    sequences = [_preferred_slots(pod.address, new_len) for pod in ordered]
    ring: list[int | None] = [None] * new_len
    taken = 0
    shares = [Fraction(weight, max(weights)) for weight in weights] or [Fraction(1)] * len(ordered)
    for turn in count():
        for position, sequence in enumerate(sequences):
            if floor((turn + 1) * shares[position]) == floor(turn * shares[position]):
                continue
            slot = next(slot for slot in sequence if ring[slot] is None)
            ring[slot] = position
            taken += 1
            if taken == new_len:
                break
        else:
            continue
        break
    return [owner for owner in ring if owner is not None]


def _preferred_slots(address: Address, new_len: int) -> Iterable[int]:
    """Every slot once, in this address's own order (an iterator, which remembers where it stood)."""
    packed = address_bytes(address)
    seed = xxh64_word(int.from_bytes(packed[:8], "little") ^ int.from_bytes(packed[8:], "little"))
    skip = seed & 0xFFFFFFFF | 1
    offset = seed >> 32
    return iter((offset + turn * skip) % new_len for turn in range(new_len))
