"""Is this proxy well?  What /healthz and /livez answer, and what load balancers are told of it.

Well is whoever takes over in time what it has heard: a change that waits for longer than twice the sync period is too
late.  Before the first change nobody is late.  /healthz besides asks whether the node takes part at all, since a load
balancer must leave a node that is about to be deleted before its proxy ends; /livez does not, since a restart would
not help.  No clock: times come from the caller, in nanoseconds of Unix time.
Source: pkg/proxy/healthcheck/proxy_health.go, Kubernetes 1.36; KEP-3836.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

from kuproxy.kubeproxy.listen import Answer, text

__all__ = ["FAMILIES", "ProxyHealth", "rfc3339"]

FAMILIES = ("IPv4", "IPv6")
_ZERO_TIME = "0001-01-01T00:00:00Z"  # Go's
_HEADERS = {"Content-Type": "application/json", "X-Content-Type-Options": "nosniff"}


def rfc3339(ns: int) -> str:
    """As Go prints a time: no zeros at the end of the fraction."""
    seconds, rest = divmod(ns, 10**9)
    fraction = f".{rest:09d}".rstrip("0").rstrip(".")
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + fraction + "Z"


class ProxyHealth:
    """Changes heard and taken over, for each family."""

    def __init__(self, healthy_within_s: float, clock_ns: Callable[[], int] = time.time_ns) -> None:
        self._within_ns = round(healthy_within_s * 10**9)
        self._clock_ns = clock_ns
        self._updated: dict[str, int] = {}
        self._waiting: dict[str, int] = {}  # since when the oldest change waits
        self.node_eligible = True  # until the Node says otherwise
        self.answered: dict[tuple[str, int], int] = {}  # how often, by path and status

    def queued(self, family: str) -> None:
        """A change has been heard."""
        self._waiting.setdefault(family, self._clock_ns())

    def updated(self, family: str) -> None:
        """Everything that was heard is in the tables."""
        self._waiting.pop(family, None)
        self._updated[family] = self._clock_ns()

    def is_healthy(self, family: str = "") -> bool:
        """Of one family, or of all."""
        now = self._clock_ns()
        waiting = [self._waiting[family]] if family in self._waiting else []
        if not family:
            # A family that has never been updated is starting up.
            waiting = [since for each, since in self._waiting.items() if each in self._updated]
        return all(now - since < self._within_ns for since in waiting)

    def answer(self, path: str) -> Answer:
        """To a GET of 10256."""
        if path not in ("/healthz", "/livez"):
            return text("404 page not found\n", 404)
        now = self._clock_ns()
        healthy = self.is_healthy()
        eligible = self.node_eligible or path == "/livez"
        status = 200 if healthy and eligible else 503
        last = max(self._updated.values(), default=None)
        if status == 200:
            last = self._clock_ns()  # a proxy with nothing to do is as good as one that has just done it
        body: dict[str, Any] = {
            "lastUpdated": _ZERO_TIME if last is None else rfc3339(last),
            "currentTime": rfc3339(now),
        }
        if path == "/healthz":
            body["nodeEligible"] = self.node_eligible
        body["healthy"] = healthy
        body["status"] = {
            family: {"lastUpdated": rfc3339(when), "healthy": self.is_healthy(family)}
            for family, when in sorted(self._updated.items())
        }
        self.answered[path, status] = self.answered.get((path, status), 0) + 1
        return Answer(status, _HEADERS, json.dumps(body, separators=(",", ":")).encode())
