"""AF_XDP sockets for workers to come, opened while that is still allowed.

A worker that takes another's place needs a socket of its own, because a UMEM is memory of the process that has
registered it.  A socket belongs to the network namespace in which it was opened, and after the start control may not
enter the private one any more; a control process that takes over never might.  But a socket that is not bound yet is
anybody's who holds it.  So as many as a keeper's life should need are opened at its beginning, and kept in the vault.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from kuproxy.drivers._xdp_socket import open_socket, open_sockets
from kuproxy.errors import HandoverError
from kuproxy.keeper.vault import Vault

__all__ = ["SPARES", "XdpSockets"]

SPARES = 64  # a kilobyte each; an upgrade that brings other kernels takes one for each worker, and so does each death
_PROBE, _SPARE = "xdp/probe", "xdp/socket/"  # in the vault; the number follows


class XdpSockets:
    """The stock of them.  Threads may share it."""

    def __init__(self, probe: int, spares: Iterable[tuple[str, int]], map_fd: int, vault: Vault) -> None:
        """`probe` answers what is asked about interfaces; `map_fd` is of the XSKMAP.  Owns all but the latter."""
        self._probe, self._map, self._vault = probe, map_fd, vault
        self._spares = list(spares)

    @classmethod
    def fill(cls, interface: str, workers: int, map_fd: int, vault: Vault) -> XdpSockets:
        """One for each worker, and SPARES.  To be called in the interface's namespace.  Raises DriverError."""
        first, probe = open_sockets(interface)
        opened = [first, *(open_socket(interface) for _ in range(workers + SPARES - 1))]
        spares = [(f"{_SPARE}{number}", each.detach()) for number, each in enumerate(opened)]
        stock = cls(probe.detach(), spares, map_fd, vault)
        vault.keep({_PROBE: stock._probe, **dict(spares)})
        return stock

    @staticmethod
    def are_left(vault: Vault) -> bool:
        """Whether a former control process has filled a stock, be it used up by now."""
        return _PROBE in vault.names()

    @classmethod
    def adopt(cls, map_fd: int, vault: Vault) -> XdpSockets:
        """What a former control process has left."""
        probe = vault.take(_PROBE)
        return cls(probe, [(name, vault.take(name)) for name in vault.names(_SPARE)], map_fd, vault)

    def __len__(self) -> int:
        return len(self._spares)

    def take(self) -> dict[str, int]:
        """What a new worker is to be handed (`Wiring.handed`).  Raises HandoverError when there is none left.

        Whoever else held a socket that is bound would keep its queue from the next one, so the vault lets it go first.
        """
        try:
            name, taken = self._spares.pop()
        except IndexError:
            raise HandoverError(
                "no AF_XDP socket is left for another worker, and none can be opened"
            ) from None
        self._vault.drop(name)
        return {"xdp": taken, "probe": os.dup(self._probe), "xskmap": os.dup(self._map)}

    def close(self) -> None:
        """Idempotent."""
        for name, fd in self._spares:
            os.close(fd)
            self._vault.drop(name)
        self._spares.clear()
        if self._probe >= 0:
            os.close(self._probe)
            self._vault.drop(_PROBE)
            self._probe = -1
