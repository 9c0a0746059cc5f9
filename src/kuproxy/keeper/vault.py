"""The control process's side of the keeper: descriptors by name that outlive this process.

A control process that was started by a keeper finds there what its predecessor left.  Without a keeper (`ku run`,
tests) a vault is empty and forgets everything; those above need not know which of the two they have.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Mapping, Sequence
from typing import Any

from kuproxy.datagrams import AT_ONCE, receive, send

from .wire import FD_VARIABLE

__all__ = ["Vault"]


class Vault:
    """Descriptors by name.  The keeper holds duplicates: closing one's own takes nothing away."""

    def __init__(self, connection: socket.socket | None = None) -> None:
        self._connection = connection
        self._kept: dict[str, int] = {}
        if connection is not None:
            self._list(connection)

    @classmethod
    def of_environment(cls) -> Vault:
        """The vault of the keeper that started this process, if one did.  To be called once."""
        fd = os.environ.pop(FD_VARIABLE, "")
        if not fd:
            return cls()
        os.set_inheritable(int(fd), False)
        return cls(socket.socket(fileno=int(fd)))

    @property
    def connected(self) -> bool:
        """Whether there is a keeper."""
        return self._connection is not None

    def _list(self, connection: socket.socket) -> None:
        send(connection, {"list": True})
        while True:
            answer = receive(connection)
            if answer is None:
                raise ConnectionError("the keeper has ended")
            message, fds = answer
            self._kept.update(zip(message["kept"], fds, strict=True))
            if message.get("end"):
                return

    # ------------------------------------------------------------------------------------------- descriptors

    def names(self, prefix: str = "") -> list[str]:
        """What the predecessor left and nobody has taken yet."""
        return sorted(name for name in self._kept if name.startswith(prefix))

    def take(self, name: str) -> int:
        """The descriptor that the predecessor left, now the caller's; it stays kept.  Raises KeyError."""
        return self._kept.pop(name)

    def peek(self, name: str) -> int:
        """The same, without taking it.  Raises KeyError."""
        return self._kept[name]

    def put(self, name: str, fd: int) -> None:
        """Something better in the place of what the predecessor left: as if it had left this.  Takes the descriptor."""
        former = self._kept.get(name)
        if former is not None:
            os.close(former)
        self._kept[name] = fd
        self.keep({name: fd})

    def keep(self, fds: Mapping[str, int]) -> None:
        """Let these outlive us.  A name that is kept already stands for the new one from now on."""
        if self._connection is None:
            return
        names = list(fds)
        for first in range(0, len(names), AT_ONCE):
            some = names[first : first + AT_ONCE]
            self._say({"keep": some}, [fds[name] for name in some])

    def drop(self, *names: str) -> None:
        """Let these go with us.  Unknown names do no harm."""
        for name in names:
            fd = self._kept.pop(name, None)
            if fd is not None:
                os.close(fd)
        if names:
            self._say({"drop": list(names)})

    def drop_all(self) -> None:
        """Nothing of what the predecessor left is of use."""
        self.drop(*self.names())

    # ------------------------------------------------------------------------------------------------- news

    def notify(self, text: str) -> None:
        """For the service manager, and for the keeper itself: READY=1, WATCHDOG=1, STOPPING=1, RELOADING=1."""
        self._say({"notify": text})

    def _say(self, message: dict[str, Any], fds: Sequence[int] = ()) -> None:
        if self._connection is not None:
            with contextlib.suppress(OSError):  # the keeper has ended, and so shall we (PR_SET_PDEATHSIG)
                send(self._connection, message, fds)
