"""Which source port a translated flow gets: section "Source ports" of docs/forwarding.md; and whose replies to it are.

Steering is not asked: this is said once more here, so that a mistake there is seen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice

from kuproxy.codes import PROTOCOLS_WITH_PORTS, Protocol
from kuproxy.model.vip import Address

FIRST, COUNT = 1024, 64499  # the largest prime of ports from 1024 on
TRIES = 1024

_GOLDEN = 0x9E3779B97F4A7C15


def worker_of(client: Address, port: int, protocol: int, workers: int) -> int:
    """Number of the worker that packets from or to this client come to: section "Several workers"."""
    if protocol in (Protocol.ICMP, Protocol.ICMP6):
        return 0
    counted = port if protocol in PROTOCOLS_WITH_PORTS else 0
    word = int.from_bytes(client.packed[-4:] + counted.to_bytes(2, "big"), "little")
    return (word * _GOLDEN >> 32 & 0xFFFFFFFF) * workers >> 32


def candidates(wanted: int, seed: int, first: int = FIRST, count: int = COUNT) -> Iterator[int]:
    """The client's own port, if it is of the range; then a walk that the flow's hash begins."""
    if first <= wanted < first + count:
        yield wanted
    step = 1 + (seed >> 8) % (count - 1) if count > 2 else 1
    for turn in range(count):
        yield first + (seed + turn * step) % count


def allocate(
    wanted: int, seed: int, is_ours: Callable[[int], bool], is_free: Callable[[int], bool]
) -> int | None:
    """The first candidate of this worker's that is free, of its first TRIES."""
    ours = islice(filter(is_ours, candidates(wanted, seed)), TRIES)
    return next(filter(is_free, ours), None)
