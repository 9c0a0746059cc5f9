"""Which interface has which of our programs attached, brought in line with the interfaces that there are."""

from __future__ import annotations

import errno
from collections.abc import Iterable

from ..errors import SteeringError
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

    def __init__(self, program: LoadedProgram, where: AttachType) -> None:
        self._program, self._where = program, where
        self._links: dict[int, Link] = {}
        self._names: dict[int, str] = {}
        self.failures: dict[str, str] = {}  # interface name → why it could not be attached to

    @property
    def names(self) -> list[str]:
        return sorted(self._names.values())

    def sync(self, interfaces: Iterable[Interface]) -> list[str]:
        """Attach where it is missing, detach where it is no longer wanted; returns a line for each change."""
        wanted = {each.ifindex: each for each in interfaces}
        lines = []
        for index in [index for index in self._links if index not in wanted]:
            self._links.pop(index).close()  # of no effect where the interface is gone
            lines.append(f"detached from {self._names.pop(index)}")
        for index, interface in wanted.items():
            if index in self._links:
                self._names[index] = interface.name  # it may have been renamed
            elif self._attach(interface):
                lines.append(f"attached to {interface.name}")
        return lines

    def _attach(self, interface: Interface) -> bool:
        try:
            self._links[interface.ifindex] = Link(self._program, interface.ifindex, self._where)
        except SteeringError as error:
            cause = error.__cause__
            if not (isinstance(cause, OSError) and cause.errno == errno.ENODEV):  # gone already
                self.failures[interface.name] = str(error)
            return False
        self.failures.pop(interface.name, None)
        self._names[interface.ifindex] = interface.name
        return True

    def close(self) -> None:
        """Idempotent."""
        for link in self._links.values():
            link.close()
        self._links.clear()
        self._names.clear()
