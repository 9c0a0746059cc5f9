"""Health-check node ports: for each service that asks for one, a port at which load balancers hear about this node.

What is answered is decided in `control.policy.health`; here ports open and close as services come and go.
Source: pkg/proxy/healthcheck/service_health.go, Kubernetes 1.36.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from kuproxy.control.policy.health import health_answer
from kuproxy.daemon.kubernetes import HealthCheck
from kuproxy.kubeproxy.config import Endpoint
from kuproxy.kubeproxy.listen import Answer, Ports, Question, bind, text
from kuproxy.model.service import Service

__all__ = ["ServiceHealth"]

EVERYWHERE = ("0.0.0.0",)


@dataclass(slots=True)
class _Port:
    service: tuple[str, str]  # namespace and name
    addresses: tuple[str, ...]
    sockets: list[socket.socket] = field(default_factory=list)


class ServiceHealth:
    """Keeps the open ports equal to what the services ask for.  For one event loop."""

    def __init__(self, is_healthy: Callable[[], bool]) -> None:
        self._is_healthy = is_healthy
        self._ports: dict[int, _Port] = {}
        self._known: dict[int, HealthCheck] = {}
        self._http = Ports(self._answer)

    async def sync(
        self, wanted: Iterable[HealthCheck], addresses: Iterable[str] = EVERYWHERE
    ) -> list[tuple[HealthCheck, OSError]]:
        """Let the ports of these services, and no others, be open at these addresses of the node.

        Returns those that could not be opened, and why; the next call tries them again.
        """
        self._known = {check.port: check for check in wanted}
        at = tuple(sorted(addresses))
        for number, port in list(self._ports.items()):
            new = self._known.get(number)
            if new is None or (new.namespace, new.name) != port.service or at != port.addresses:
                self._close(number)
        failed = []
        for number, check in self._known.items():
            if number in self._ports:
                continue
            try:
                await self._open(check, at)
            except OSError as error:
                failed.append((check, error))
        return failed

    async def _open(self, check: HealthCheck, addresses: tuple[str, ...]) -> None:
        """At all the addresses or at none."""
        port = self._ports[check.port] = _Port((check.namespace, check.name), addresses)
        try:
            for address in addresses:
                opened = bind(Endpoint(address, check.port))
                port.sockets.append(opened)
                await self._http.open(opened)
        except OSError:
            self._close(check.port)
            raise

    def _close(self, number: int) -> None:
        for opened in self._ports.pop(number).sockets:
            self._http.close(opened)

    def stop(self) -> None:
        self._ports.clear()
        self._http.stop()

    async def _answer(self, question: Question) -> Answer:
        """Whatever the path."""
        check = self._known.get(question.port)
        if check is None:  # over a connection from before the service went
            return text("the service is gone\n", 503)
        answer = health_answer(
            Service(check.namespace, check.name), check.local_endpoints, self._is_healthy()
        )
        return Answer(answer.status, answer.headers, answer.body.encode())
