"""A reflector's other side, by hand: answers to what it asks, at times that the test names."""

from __future__ import annotations

import json
import random
from typing import Any

from kuproxy.kube.pace import Pace
from kuproxy.kube.reflector import Reflector, Request
from kuproxy.kube.resources import SERVICES, Resource

Object = dict[str, Any]


def service(name: str, version: int, port: int = 80, **meta: object) -> Object:
    return {
        "metadata": {"name": name, "namespace": "shop", "resourceVersion": str(version), **meta},
        "spec": {"ports": [{"port": port}]},
    }


class Script:
    """`now` moves only when the test says so."""

    def __init__(self, resource: Resource[Any] = SERVICES, pace: Pace | None = None) -> None:
        self.now = 1000.0
        self.reflector: Reflector[Any] = Reflector(resource, random.Random(7), self.now, pace)
        self.reflector.tick(self.now)

    @property
    def request(self) -> Request:
        request = self.reflector.wanted
        assert request is not None, self.reflector.problem
        return request

    @property
    def params(self) -> dict[str, str]:
        return dict(self.request.params)

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.reflector.tick(self.now)

    def pause(self) -> float:
        """Wait until it asks again; how long that was."""
        assert self.reflector.wanted is None
        seconds = self.reflector.deadline - self.now
        self.pass_time(seconds)
        assert self.reflector.wanted is not None
        return seconds

    def answer(self, body: object = b"", status: int = 200, retry_after: str = "", end: bool = True) -> None:
        serial = self.request.serial
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.reflector.head(serial, self.now, status, retry_after)
        self.reflector.body(serial, self.now, data)
        if end:
            self.reflector.end(serial, self.now)

    def refuse(self, status: int, reason: str = "", message: str = "", retry_after: str = "") -> None:
        body = {"kind": "Status", "code": status, "reason": reason, "message": message}
        self.answer(body, status, retry_after)

    def list(self, *items: Object, version: int = 100, continue_: str = "") -> None:
        self.answer(
            {"metadata": {"resourceVersion": str(version), "continue": continue_}, "items": list(items)}
        )

    def open(self) -> None:
        assert self.request.watch
        self.reflector.head(self.request.serial, self.now, 200)

    def event(self, kind: str, obj: Object) -> None:
        self.bytes(json.dumps({"type": kind, "object": obj}).encode() + b"\n")

    def bookmark(self, version: int) -> None:
        self.event("BOOKMARK", {"metadata": {"resourceVersion": str(version)}})

    def bytes(self, data: bytes) -> None:
        self.reflector.body(self.request.serial, self.now, data)

    def end(self) -> None:
        self.reflector.end(self.request.serial, self.now)

    def fail(self, why: str = "connection reset") -> None:
        self.reflector.fail(self.request.serial, self.now, why)

    @property
    def names(self) -> list[str]:
        return sorted(name for _namespace, name in self.reflector.objects)

    def changes(self) -> list[tuple[str, str]]:
        return [(change.kind.value, change.key[1]) for change in self.reflector.take()]


def watching(*items: Object, version: int = 100, resource: Resource[Any] = SERVICES) -> Script:
    """A script whose reflector has listed and watches."""
    script = Script(resource)
    script.list(*items, version=version)
    script.open()
    script.reflector.take()
    return script
