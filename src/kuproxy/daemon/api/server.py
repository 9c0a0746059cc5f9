"""Sockets and connections: who is at the other end, and how long anybody may keep us waiting.

uvicorn does HTTP.  Ours are the sockets (bound here, with their mode and group), the peer's credentials in the
request's state, and a deadline at all times: from the opening of a connection, or the end of the answer before, until
all headers are here, and from there to the end of the answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h11
import msgspec
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from kuproxy.daemon.api.auth import Peer, peer_of
from kuproxy.daemon.api.views import Error
from kuproxy.errors import ConfigError, KuError, Problem

__all__ = ["Listener", "bind_unix", "http_config"]

HEADERS_WITHIN_S = 10.0
# From the headers to the end of the answer, body and work included. Whoever asks twice and reads nothing waits in vain.
ANSWER_WITHIN_S = 120.0
KEEP_ALIVE_S = 10
MOST_HEADER_BYTES = 32 << 10
MOST_CONNECTIONS = 4096
BACKLOG = 1024


class _Connection(H11Protocol):
    """One connection."""

    _deadline: asyncio.TimerHandle | None = None
    _answering: Any = None  # the request that the deadline is for; None: it is for headers

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if transport.get_extra_info("peercert"):
            peer = Peer(certified=True)
        else:
            raw = transport.get_extra_info("socket")
            peer = peer_of(raw) if raw is not None else Peer()
        self.app_state = {**self.app_state, "peer": peer}
        if len(self.connections) > MOST_CONNECTIONS:
            transport.abort()
            return
        self._arm()

    def _arm(self) -> None:
        """For whatever comes next: the headers of a request, or the end of the answer to one that is here."""
        cycle: Any = self.cycle  # None before the first request
        answering = cycle is not None and not cycle.response_complete
        if answering and self._answering is cycle:
            return  # more of the same request, or the next one already: no reason to wait longer
        self._disarm()
        self._answering = cycle if answering else None
        seconds = ANSWER_WITHIN_S if answering else HEADERS_WITHIN_S
        self._deadline = self.loop.call_later(seconds, self.transport.abort)

    def _disarm(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        cycle: Any = self.cycle
        if cycle is not None and not cycle.response_complete:
            self._arm()

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP is refused in the shape of every other refusal; a body may turn out to be none, too."""
        cycle: Any = self.cycle
        if cycle is not None and not cycle.response_complete:
            cycle.disconnected = True  # or its answer would follow this one
            cycle.message_event.set()
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):  # an answer has begun
            self.transport.close()
            return
        body = msgspec.json.encode(Error(error=msg.rstrip(".").lower()))
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
        ]
        for event in (
            h11.Response(status_code=400, headers=headers, reason=b"Bad Request"),
            h11.Data(data=body),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self.transport.is_closing():
            self._arm()

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        super().connection_lost(exc)


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are the daemon's affair."""
        yield


def http_config(app: Any) -> uvicorn.Config:
    """uvicorn's settings with our connections, loaded."""
    config = uvicorn.Config(
        app,
        http=_Connection,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        log_level="error",
        server_header=False,
        proxy_headers=False,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=2,
        h11_max_incomplete_event_size=MOST_HEADER_BYTES,
    )
    config.load()
    return config


class Listener:
    """One socket and what is served there."""

    def __init__(self, app: Any, opened: socket.socket, context: ssl.SSLContext | None = None) -> None:
        config = http_config(app)
        config.ssl = context
        self._server = _Server(config)
        self._socket = opened

    async def serve(self) -> None:
        """Until `stop`."""
        await self._server.serve(sockets=[self._socket])

    def stop(self) -> None:
        self._server.should_exit = True


def bind_unix(path: Path, mode: int, group: int | None) -> socket.socket:
    """A listening socket that nobody can reach before its mode and group are set.

    A socket that nobody listens to any more is replaced.  Raises ConfigError.
    """
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    opened = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        if _is_socket(path):
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as trial:
                try:
                    trial.connect(str(path))
                except OSError:
                    path.unlink(missing_ok=True)
                else:
                    raise ConfigError(
                        Problem(
                            f"a daemon already listens at {path}", field="api.socket", hint="end it first"
                        )
                    )
        before = os.umask(0o777)
        try:
            opened.bind(str(path))
        finally:
            os.umask(before)
        if group is not None:
            os.chown(path, -1, group)
        path.chmod(mode)
        opened.listen(BACKLOG)
    except OSError as error:
        opened.close()
        raise ConfigError(Problem(f"{path}: {error.strerror}", field="api.socket")) from None
    except KuError:
        opened.close()
        raise
    opened.setblocking(False)
    return opened


def _is_socket(path: Path) -> bool:
    try:
        return stat.S_ISSOCK(path.lstat().st_mode)
    except OSError:
        return False


def bind_tcp(address: str, port: int, field: str) -> socket.socket:
    """Raises ConfigError."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    opened = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        opened.bind((address, port))
        opened.listen(BACKLOG)
    except OSError as error:
        opened.close()
        raise ConfigError(Problem(f"{address} port {port}: {error.strerror}", field=field)) from None
    opened.setblocking(False)
    return opened


def tls_context(certificate: str, key: str, client_ca: str) -> ssl.SSLContext:
    """Raises ConfigError.  With `client_ca`, clients must show a certificate that it has signed."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(certificate, key)
        if client_ca:
            context.load_verify_locations(client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(Problem(f"certificate, key or client_ca: {error}", field="tcp")) from None
    return context
