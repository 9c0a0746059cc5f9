"""Events: what `kubectl describe node` and `kubectl get events` show of this proxy, with upstream's reasons.

An event is told once and forgotten: if the API server does not take it, the log has it, and nobody waits.
Source: k8s.io/api events/v1; client-go tools/events (names, fields); cmd/kube-proxy/app/server.go (reasons).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from kuproxy.kubeproxy.health import rfc3339

__all__ = ["Event", "Recorder", "about_node", "about_service"]

COMPONENT = "kube-proxy"  # whose part we play: what watches for its events finds ours
MOST_WAITING = 100
NOTE_LIMIT, INSTANCE_LIMIT = 1024, 128  # characters; the API server refuses longer ones


@dataclass(frozen=True, slots=True)
class Event:
    """`type` is Normal or Warning; `regarding` is a v1.ObjectReference."""

    regarding: dict[str, str]
    type: str
    reason: str
    action: str
    note: str = ""


def about_node(name: str) -> dict[str, str]:
    """kubectl finds a node's events by its name as the UID (k8s.io/kubectl pkg/describe)."""
    return {"kind": "Node", "name": name, "uid": name}


def about_service(namespace: str, name: str) -> dict[str, str]:
    return {"kind": "Service", "namespace": namespace, "name": name, "uid": f"{namespace}/{name}"}


class Recorder:
    """Sends events one after the other, in a task of its own."""

    def __init__(
        self,
        node_name: str,
        post: Callable[[str, dict[str, Any]], Awaitable[None]],
        report: Callable[[Event, str], None],
    ) -> None:
        """`post` sends an object to a path and raises whatever goes wrong; `report` hears of it."""
        self._instance = f"{COMPONENT}-{node_name}"[:INSTANCE_LIMIT]
        self._post, self._report = post, report
        self._waiting: asyncio.Queue[Event] = asyncio.Queue(MOST_WAITING)

    def record(self, event: Event) -> None:
        """Never waits: when too many wait already, the log alone hears of it."""
        try:
            self._waiting.put_nowait(event)
        except asyncio.QueueFull:
            self._report(event, "too many events wait")

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self.send(await self._waiting.get())

    async def drain(self) -> None:
        """Send what waits; for the end."""
        while not self._waiting.empty():
            await self.send(self._waiting.get_nowait())

    async def send(self, event: Event) -> None:
        body = self.document(event, time.time_ns())
        namespace = body["metadata"]["namespace"]
        try:
            await self._post(f"/apis/events.k8s.io/v1/namespaces/{namespace}/events", body)
        except Exception as error:  # whatever it is, an event is not worth more than a line
            self._report(event, f"{type(error).__name__}: {error}".rstrip(": "))

    def document(self, event: Event, now_ns: int) -> dict[str, Any]:
        """As the API wants it."""
        regarding = {"apiVersion": "v1", **event.regarding}
        return {
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "metadata": {
                "name": f"{regarding['name']}.{now_ns:x}",
                "namespace": regarding.get("namespace") or "default",
            },
            "eventTime": _micro(now_ns),
            "reportingController": COMPONENT,
            "reportingInstance": self._instance,
            "action": event.action,
            "reason": event.reason,
            "regarding": regarding,
            "note": event.note[:NOTE_LIMIT],
            "type": event.type,
        }


def _micro(ns: int) -> str:
    """Six digits, always: what metav1.MicroTime takes."""
    return f"{rfc3339(ns - ns % 10**9)[:-1]}.{ns % 10**9 // 1000:06d}Z"
