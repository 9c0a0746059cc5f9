"""Which interface has which of our programs attached, brought in line with the interfaces that there are.

Links are kept in the vault: the programs stay attached while the control process is replaced, and the next one puts its
own programs into the same links.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable

from ..errors import SteeringError
from ..keeper.vault import Vault
from .bpf import AttachType, Link, LoadedProgram
from .links import KU0
from .node import Interface

__all__ = ["Attachments", "is_wanted"]

LOOPBACK = "lo"


def is_wanted(interface: Interface, names: frozenset[str] | None) -> bool:
    """Every Ethernet-like interface that is up, or those named; always `lo`, where the node talks to itself."""
    if interface.name == KU0 or not interface.ethernet or not interface.up:
        return False
    return names is None or interface.name in names or interface.name == LOOPBACK


class Attachments:
    """One program at one place (ingress or egress) of a changing set of interfaces."""

    def __init__(
        self,
        program: LoadedProgram,
        where: AttachType,
        vault: Vault,
        name: str = "",
        before: Attachments | None = None,
    ) -> None:
        """Links that a predecessor left go on with its program until `take_over`.

        `name`: under which they are kept, the place's by default.  `before`: packets meet this program before those;
        both want the same interfaces.
        """
        self._program, self._where, self._vault = program, where, vault
        self._kept_as, self._before = name or where.name.lower(), before
        self._names: dict[int, str] = {}
        self.failures: dict[str, str] = {}  # interface name → why it could not be attached to
        self._links: dict[int, Link] = {}
        for kept in vault.names(self._name("")):
            ifindex = int(kept.rpartition("/")[2])
            self._links[ifindex] = Link.adopt(vault.take(kept), ifindex, where)
            self._names[ifindex] = str(ifindex)

    def _name(self, ifindex: int | str) -> str:
        return f"link/{self._kept_as}/{ifindex}"

    def take_over(self) -> None:
        """Put our program into the links of a predecessor; a link whose interface is gone goes too."""
        for index, link in list(self._links.items()):
            try:
                link.update(self._program)
            except SteeringError:
                self._let_go(index)

    def _let_go(self, index: int) -> str:
        self._links.pop(index).close()  # of no effect where the interface is gone
        self._vault.drop(self._name(index))
        return self._names.pop(index)

    def link(self, ifindex: int) -> Link | None:
        """What holds the program at an interface."""
        return self._links.get(ifindex)

    @property
    def names(self) -> list[str]:
        return sorted(self._names.values())

    def sync(self, interfaces: Iterable[Interface]) -> list[str]:
        """Attach where it is missing, detach where it is no longer wanted; returns a line for each change."""
        wanted = {each.ifindex: each for each in interfaces}
        lines = []
        for index in [index for index in self._links if index not in wanted]:
            lines.append(f"detached from {self._let_go(index)}")
        for index, interface in wanted.items():
            if index in self._links:
                self._names[index] = interface.name  # it may have been renamed
            elif self._attach(interface):
                lines.append(f"attached to {interface.name}")
        return lines

    def _attach(self, interface: Interface) -> bool:
        before = None
        if self._before is not None:
            before = self._before.link(interface.ifindex)
            if before is None:  # which has its own failure to tell
                return False
        try:
            link = Link(self._program, interface.ifindex, self._where, before=before)
        except SteeringError as error:
            cause = error.__cause__
            if not (isinstance(cause, OSError) and cause.errno == errno.ENODEV):  # gone already
                self.failures[interface.name] = str(error)
            return False
        self._links[interface.ifindex] = link
        self._vault.keep({self._name(interface.ifindex): link.fd})
        self.failures.pop(interface.name, None)
        self._names[interface.ifindex] = interface.name
        return True

    def close(self) -> None:
        """Idempotent."""
        for index in list(self._links):
            self._let_go(index)


def drop_left(vault: Vault, name: str) -> None:
    """Detach what a predecessor has attached under this name, where there is no such program any more."""
    vault.drop(*vault.names(f"link/{name}/"))
