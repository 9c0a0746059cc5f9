"""How long the watcher waits, and for what: back-off with jitter, and the limits beyond which an answer is given up.

The figures of the back-off are client-go's (tools/cache/reflector.go: 800 ms doubling to 30 s, jitter of 1), so that a
cluster's worth of nodes does not fall upon an API server that has just come back.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

__all__ = ["Backoff", "Pace"]


@dataclass(frozen=True, slots=True)
class Pace:
    """Limits; all times in seconds, all sizes in bytes."""

    page_items: int = 500  # client-go's page size
    first_backoff_s: float = 0.8
    max_backoff_s: float = 30.0
    # A page may be computed for a minute before its first byte (kube-apiserver's --request-timeout).
    list_idle_s: float = 75.0
    list_total_s: float = 300.0
    # A watch asks to be closed after 5 to 10 minutes, at random, as client-go does.
    watch_min_s: float = 300.0
    watch_max_s: float = 600.0
    # The server sends a bookmark a minute: two missed, and whatever carried the stream is gone.
    watch_idle_s: float = 130.0
    # A watch that the server ends at once, having said nothing, is no way to wait for news.
    short_watch_s: float = 1.0
    absent_s: float = 300.0  # before an optional resource that the server lacks is asked for again
    max_retry_after_s: float = 300.0  # whatever the server says
    # 10,000 services with 100,000 endpoints are 45 MB in one list; etcd takes objects of 1.5 MB.
    max_body: int = 1 << 30
    max_line: int = 16 << 20
    max_refusal: int = 64 << 10
    max_tombstones: int = 4096


class Backoff:
    """Exponential, with jitter between the delay and twice the delay."""

    __slots__ = ("_failures", "_pace", "_random")

    def __init__(self, pace: Pace, random: Random) -> None:
        self._pace = pace
        self._random = random
        self._failures = 0

    def next_s(self, at_least_s: float = 0.0) -> float:
        """The wait before the next attempt; a Retry-After is a lower limit, jitter comes on top of it."""
        delay = min(self._pace.first_backoff_s * 2**self._failures, self._pace.max_backoff_s)
        self._failures = min(self._failures + 1, 16)
        jitter = delay * self._random.random()
        return max(delay, min(at_least_s, self._pace.max_retry_after_s)) + jitter

    def reset(self) -> None:
        self._failures = 0
