"""HTTP at ports that open and close while the process runs, in the form in which upstream answers.

A node may have a health-check port for each of hundreds of services.  uvicorn's server has a timer of its own, ten
times a second, and cannot be given a socket later; here all ports share one application, and an open port costs its
socket.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from email.utils import formatdate
from ipaddress import ip_address
from typing import Any, NamedTuple

from uvicorn.server import ServerState

from kuproxy.daemon.api.server import BACKLOG, http_config
from kuproxy.kubeproxy.config import Endpoint

__all__ = ["Answer", "Handler", "Ports", "Question", "bind", "text"]


class Answer(NamedTuple):
    """Headers as upstream spells them; date and length are added."""

    status: int
    headers: dict[str, str]
    body: bytes


class Question(NamedTuple):
    """What was asked for, and at which port."""

    path: str
    port: int
    accept: str = ""  # the header `Accept`


Handler = Callable[[Question], Awaitable[Answer]]


def text(body: str, status: int = 200) -> Answer:
    """As Go's http.Error and http.ResponseWriter send text."""
    headers = {"Content-Type": "text/plain; charset=utf-8", "X-Content-Type-Options": "nosniff"}
    return Answer(status, headers, body.encode())


def bind(endpoint: Endpoint) -> socket.socket:
    """Listen there; at an unspecified address for both families, as Go does.  Raises OSError."""
    address = ip_address(endpoint.address)
    everywhere = address.is_unspecified and socket.has_dualstack_ipv6()
    six = address.version == 6 or everywhere
    opened = socket.socket(
        socket.AF_INET6 if six else socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_CLOEXEC
    )
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if six:
            opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(not everywhere))
        opened.bind(("::" if everywhere else endpoint.address, endpoint.port))
        opened.listen(BACKLOG)
    except OSError:
        opened.close()
        raise
    opened.setblocking(False)
    return opened


class Ports:
    """Open ports by socket, all answered by one handler.  For one event loop."""

    def __init__(self, handler: Handler) -> None:
        async def application(scope: Any, _receive: Any, send: Any) -> None:
            await _serve(handler, scope, send)

        self._config = http_config(application)
        self._state = ServerState()
        self._servers: dict[socket.socket, asyncio.Server] = {}

    async def open(self, opened: socket.socket) -> None:
        """Serve at a listening socket."""

        def connected() -> Any:
            return self._config.http_protocol_class(  # type: ignore[call-arg]
                config=self._config, server_state=self._state, app_state={}
            )

        loop = asyncio.get_running_loop()
        self._servers[opened] = await loop.create_server(connected, sock=opened, backlog=BACKLOG)

    def close(self, opened: socket.socket) -> None:
        """Listen there no longer.  Connections that it made stay, and hear that the port is closed."""
        self._servers.pop(opened).close()

    def stop(self) -> None:
        """Close all ports and connections."""
        for server in self._servers.values():
            server.close()
        self._servers.clear()
        for connection in list(self._state.connections):
            connection.shutdown()


async def _serve(handler: Handler, scope: Any, send: Any) -> None:
    """One request.  The method does not matter: upstream's handlers answer all of them alike."""
    accept = b", ".join(value for name, value in scope["headers"] if name == b"accept")
    answer = await handler(Question(scope["path"], scope["server"][1], accept.decode("latin-1")))
    headers = {
        **answer.headers,
        "Date": formatdate(usegmt=True),
        "Content-Length": str(len(answer.body)),
    }
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": answer.status, "headers": raw})
    body = b"" if scope["method"] == "HEAD" else answer.body
    await send({"type": "http.response.body", "body": body})
