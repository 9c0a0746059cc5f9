"""Which source port a translated flow gets: section "Source ports" of docs/forwarding.md."""

from __future__ import annotations

from collections.abc import Callable, Iterator

FIRST, COUNT = 1024, 64499  # the largest prime of ports from 1024 on
TRIES = 1024


def candidates(wanted: int, seed: int, first: int = FIRST, count: int = COUNT) -> Iterator[int]:
    """The client's own port, if it is one of ours; then a walk that the flow's hash begins."""
    if first <= wanted < first + count:
        yield wanted
    step = 1 + (seed >> 8) % (count - 1) if count > 2 else 1
    for turn in range(min(count, TRIES)):
        yield first + (seed + turn * step) % count


def allocate(wanted: int, seed: int, is_free: Callable[[int], bool]) -> int | None:
    """The first candidate that is free."""
    return next((port for port in candidates(wanted, seed) if is_free(port)), None)
