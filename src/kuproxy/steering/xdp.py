"""The XDP program that hands an interface's packets to AF_XDP sockets, one for each receive queue.

Whoever opens the sockets need not know of it: it registers them in the program's map, which it may have inherited as a
bare descriptor (`bpf.put_socket`).  A queue without a socket passes its packets on to the kernel.  The program goes
away with the last holder of the link, as everything else here does: with a keeper, link and map outlive control.
"""

from __future__ import annotations

from enum import StrEnum
from socket import if_nametoindex

from ..errors import SteeringError
from ..keeper.vault import Vault
from .bpf import AttachType, BpfObject, Link, LinkFlag, Map, MapKind, ProgramKind, put_socket
from .emit import Program, i32, i64

__all__ = ["Where", "XdpGate", "left_mode"]

_XDP_PASS = 2
_MAP, _LINK = "xdp/map", "xdp/link/"  # in the vault; the mode follows


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

    def __init__(
        self, interface: str, queues: int, where: Where = Where.AUTO, vault: Vault | None = None
    ) -> None:
        """Raises SteeringError, with nothing left behind, when it cannot be attached in (any of) the mode(s)."""
        try:
            index = if_nametoindex(interface)
        except OSError as error:
            raise SteeringError(f"interface {interface}: {error.strerror}") from error
        self._vault = vault if vault is not None else Vault()
        sockets = Map(MapKind.XSKMAP, "ku_sockets", 4, 4, queues)
        self._map: BpfObject = sockets
        tried = (Where.NATIVE, Where.GENERIC) if where is Where.AUTO else (where,)
        reasons = []
        program = to_sockets().load({"sockets": sockets})
        try:
            for mode in tried:
                try:
                    self._link = Link(program, index, AttachType.XDP, _FLAGS[mode])
                except SteeringError as error:
                    reasons.append(f"{mode} mode: {error.__cause__}")
                    continue
                self.mode = mode
                self.why_not_native = "; ".join(reasons)
                self._vault.keep({_MAP: sockets.fd, f"{_LINK}{mode}": self._link.fd})
                return
        finally:
            program.close()  # the link holds it
        self._map.close()
        raise SteeringError(f"XDP program at interface {interface}: {'; '.join(reasons)}")

    @classmethod
    def adopt(cls, vault: Vault) -> XdpGate | None:
        """The gate that a former control process has left, if one has.  Its program says nothing that may change."""
        mode = left_mode(vault)
        if mode is None:
            return None
        gate = cls.__new__(cls)
        gate._vault, gate.mode, gate.why_not_native = vault, mode, ""
        gate._map = BpfObject(vault.take(_MAP))
        gate._link = Link.adopt(vault.take(f"{_LINK}{mode}"), 0, AttachType.XDP)
        return gate

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
        self._map.close()
        self._vault.drop(_MAP, f"{_LINK}{self.mode}")


def left_mode(vault: Vault) -> Where | None:
    """The mode of the gate that a former control process has left; None if its workers do without."""
    names = vault.names(_LINK)
    return Where(names[0].removeprefix(_LINK)) if names and _MAP in vault.names() else None
