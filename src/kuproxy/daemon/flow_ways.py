"""Which flows of the cache take a shortcut out of the node, from when, and until when.

steering/ways.py knows which way is safe to a destination as things are. Here its answers are written into the flows'
rows, and they are believed for a short while only: a lease of two seconds, which every turn renews. Whatever happens on
the node (a neighbour, a route, a link, a rule) suspends it at once, with one store, before anything else is done about
it. Without the lease every packet enters the node as if there were no shortcuts; so a control process that dies leaves
no stale way behind, and rows need not be changed in haste.
"""

from __future__ import annotations

import time

import numpy as np

from kuproxy.daemon.cache_choice import Shortcuts
from kuproxy.errors import SteeringError
from kuproxy.steering.cache_layout import Way
from kuproxy.steering.cache_maps import CacheMaps
from kuproxy.steering.steering import Steering
from kuproxy.steering.surroundings import Surroundings
from kuproxy.steering.ways import Ways, packed

__all__ = ["FlowWays"]

_NS = 1_000_000_000
_LEASE_NS = 2 * _NS  # four turns
_PAUSE_S = 0.2  # between two readings of everything; what happens sooner waits for the next turn
_NAMES = {Way.ROUTE: "route", Way.NEIGHBOUR: "neighbour", Way.PEER: "peer"}


class FlowWays:
    """Of one node's cache. All methods are called in the control thread."""

    def __init__(self, shortcuts: Shortcuts, maps: CacheMaps, steering: Steering) -> None:
        """Raises SteeringError or OSError."""
        self._maps = maps
        self._around = Surroundings()
        self._ways = Ways(
            self._around,
            steering.programs_at_egress,
            into_pods=shortcuts != "neighbour",
            past_filters=shortcuts == "past-filters",
        )
        self._stale = True  # rows were chosen in other surroundings
        self._read_at = 0.0
        self.failure = ""  # why there are no shortcuts now

    def filenos(self) -> list[int]:
        """Readable when `follow` has something to do."""
        return self._around.filenos()

    def leave(self) -> None:
        """Let go: what is leased goes on. Idempotent."""
        self._around.close()

    def close(self) -> None:
        """No shortcut any more. Idempotent."""
        self._suspend()
        self._around.close()

    def _suspend(self) -> None:
        self._stale = True
        self._maps.lease_shortcuts(0)

    def _fail(self, error: Exception) -> list[str]:
        """It is tried again at the next turn; what is the matter is said once."""
        self._suspend()
        before, self.failure = self.failure, str(error)
        return [] if before == self.failure else [f"no shortcuts for now: {error}"]

    # ------------------------------------------------------------------------------------ what happens on the node

    def follow(self, used: np.ndarray) -> list[str]:
        """Take in events; `used`: the pairs that have flows. Lines for the log."""
        try:
            if self._around.poll():
                self._suspend()
                if time.monotonic() - self._read_at >= _PAUSE_S:
                    self._read(used)
        except (OSError, SteeringError) as error:
            return self._fail(error)
        return []

    def turn(self, used: np.ndarray) -> list[str]:
        """The same, for what sends no events too, and the lease anew."""
        try:
            if self._around.poll() | self._around.look():
                self._suspend()
            if self._stale:
                self._read(used)
            self._maps.lease_shortcuts(time.monotonic_ns() + _LEASE_NS)
        except (OSError, SteeringError) as error:
            return self._fail(error)
        return []

    def _read(self, used: np.ndarray) -> None:
        """What was chosen is chosen anew, and rows follow where that makes a difference."""
        self._around.read()
        self._ways.forget()
        self._read_at = time.monotonic()
        rows = np.concatenate([2 * used, 2 * used + 1])
        chosen = self._chosen(rows)
        different = self._maps.differ(rows, chosen)
        if different.any():
            # A program that reads a row must not find half of one choice and half of another.
            self._maps.route(rows[different])
            self._maps.fence()
            self._maps.choose(rows[different], chosen[different])
        self._stale, self.failure = False, ""
        self._maps.lease_shortcuts(time.monotonic_ns() + _LEASE_NS)

    def choose(self, pairs: np.ndarray) -> None:
        """The ways of flows that have just been entered, and of which no packet is rewritten yet."""
        rows = np.concatenate([2 * pairs, 2 * pairs + 1])
        self._maps.choose(rows, self._chosen(rows))

    def _chosen(self, rows: np.ndarray) -> np.ndarray:
        """CHOICE[n]"""
        destinations, codes = self._maps.destinations(rows)
        return packed([self._ways.to(each) for each in destinations])[codes]

    # ------------------------------------------------------------------------------------------ what there is to say

    def of(self, pair: int) -> tuple[str, str]:
        """To the pod, and to the client."""
        there, back = (Way(int(self._maps.rows["way"][row])) for row in (2 * pair, 2 * pair + 1))
        return (_NAMES[there], _NAMES[back]) if not self.failure else (_NAMES[Way.ROUTE],) * 2

    def summary(self, live: np.ndarray) -> tuple[dict[str, int], dict[str, int]]:
        """Directions of these pairs' flows by their way, and of those that are routed by the reason."""
        rows = np.concatenate([2 * live, 2 * live + 1])
        ways = self._maps.rows["way"][rows] if not self.failure else np.zeros(len(rows), np.uint8)
        counts = {_NAMES[way]: int(np.count_nonzero(ways == way)) for way in Way}
        if self.failure:
            return counts, {self.failure: len(rows)}
        destinations, codes = self._maps.destinations(rows[ways == Way.ROUTE])
        because: dict[str, int] = {}
        for each, count in zip(destinations, np.bincount(codes, minlength=len(destinations)).tolist(), strict=True):
            why = self._ways.to(each).why or "about to change"
            because[why] = because.get(why, 0) + count
        return counts, because
