"""Health-check node ports: for each service that asks for one, a port at which load balancers hear about this node.

What is answered is decided in `control.policy.health`; here ports open and close as services come and go.
Source: pkg/proxy/healthcheck/service_health.go, Kubernetes 1.36.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from kuproxy.control.policy.health import health_answer
from kuproxy.kubeproxy.config import Endpoint
from kuproxy.kubeproxy.listen import Answer, Ports, bind, text
from kuproxy.model.service import Service

__all__ = ["ServiceHealth"]

EVERYWHERE = ("0.0.0.0",)


@dataclass(slots=True)
class _Port:
    service: str  # `namespace/name`
    addresses: tuple[str, ...]
    sockets: list[socket.socket] = field(default_factory=list)


class ServiceHealth:
    """Keeps the open ports equal to what the services ask for.  For one event loop."""

    def __init__(self, is_healthy: Callable[[], bool]) -> None:
        self._is_healthy = is_healthy
        self._ports: dict[int, _Port] = {}
        self._known: dict[int, tuple[Service, int]] = {}
        self._http = Ports(self._answer)

    async def sync(
        self, wanted: Mapping[int, tuple[Service, int]], addresses: Iterable[str] = EVERYWHERE
    ) -> list[tuple[Service, int, OSError]]:
        """Let these ports, of these services with so many endpoints here, be open at these addresses of the node.

        Returns the ports that could not be opened, and why; the next call tries them again.
        """
        self._known = dict(wanted)
        at = tuple(sorted(addresses))
        for number, port in list(self._ports.items()):
            new = wanted.get(number)
            if new is None or new[0].full_name != port.service or at != port.addresses:
                self._close(number)
        failed = []
        for number, (service, _count) in wanted.items():
            if number in self._ports:
                continue
            try:
                await self._open(number, service, at)
            except OSError as error:
                failed.append((service, number, error))
        return failed

    async def _open(self, number: int, service: Service, addresses: tuple[str, ...]) -> None:
        """At all the addresses or at none."""
        port = self._ports[number] = _Port(service.full_name, addresses)
        try:
            for address in addresses:
                opened = bind(Endpoint(address, number))
                port.sockets.append(opened)
                await self._http.open(opened)
        except OSError:
            self._close(number)
            raise

    def _close(self, number: int) -> None:
        for opened in self._ports.pop(number).sockets:
            self._http.close(opened)

    def stop(self) -> None:
        self._ports.clear()
        self._http.stop()

    async def _answer(self, _path: str, port: int) -> Answer:
        """Whatever the path."""
        known = self._known.get(port)
        if known is None:  # over a connection from before the service went
            return text("the service is gone\n", 503)
        answer = health_answer(*known, self._is_healthy())
        return Answer(answer.status, answer.headers, answer.body.encode())
