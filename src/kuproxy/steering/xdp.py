"""The XDP program that hands an interface's packets to AF_XDP sockets, one for each receive queue.

Whoever opens the sockets need not know of it: it registers them in the program's map, which it may have inherited as a
bare descriptor (`bpf.put_socket`).  A queue without a socket passes its packets on to the kernel.  The program goes
away with the last holder of the link, as everything else here does.
"""

from __future__ import annotations

from enum import StrEnum
from socket import if_nametoindex

from ..errors import SteeringError
from .bpf import AttachType, Link, LinkFlag, Map, MapKind, ProgramKind, put_socket
from .emit import Program, i32, i64

__all__ = ["Where", "XdpGate"]

_XDP_PASS = 2


class Where(StrEnum):
    """The mode to attach in."""

    AUTO = "auto"  # native, else generic
    NATIVE = "native"
    GENERIC = "generic"


_FLAGS = {Where.NATIVE: LinkFlag.XDP_NATIVE, Where.GENERIC: LinkFlag.XDP_GENERIC}


def to_sockets() -> Program:
    """Redirect everything to the socket of the queue that it came by; map: sockets."""
    program = Program("ku_xdp", ProgramKind.XDP)
    queue = program.build.zext(program.context("rx_queue_index"), i64)
    verdict = program.call("redirect_map", program.map("sockets"), queue, i64(_XDP_PASS))
    program.leave(program.build.trunc(verdict, i32))
    return program


class XdpGate:
    """The program at an interface of the calling thread's namespace, and its map for `queues` sockets."""

    def __init__(self, interface: str, queues: int, where: Where = Where.AUTO) -> None:
        """Raises SteeringError, with nothing left behind, when it cannot be attached in (any of) the mode(s)."""
        try:
            index = if_nametoindex(interface)
        except OSError as error:
            raise SteeringError(f"interface {interface}: {error.strerror}") from error
        self._map = Map(MapKind.XSKMAP, "ku_sockets", 4, 4, queues)
        self._program = to_sockets().load({"sockets": self._map})
        tried = (Where.NATIVE, Where.GENERIC) if where is Where.AUTO else (where,)
        reasons = []
        for mode in tried:
            try:
                self._link = Link(self._program, index, AttachType.XDP, _FLAGS[mode])
            except SteeringError as error:
                reasons.append(f"{mode} mode: {error.__cause__}")
                continue
            self.mode = mode
            self.why_not_native = "; ".join(reasons)
            return
        self._program.close()
        self._map.close()
        raise SteeringError(f"XDP program at interface {interface}: {'; '.join(reasons)}")

    @property
    def map_fd(self) -> int:
        """For a process that shall register its sockets itself."""
        return self._map.fd

    def register(self, queue: int, socket_fd: int) -> None:
        """Let the queue's packets come to this socket."""
        put_socket(self._map.fd, queue, socket_fd)

    def close(self) -> None:
        """Idempotent."""
        self._link.close()
        self._program.close()
        self._map.close()
