"""Who is asking, and whether they may change anything.

On the Unix socket the kernel says who it is (SO_PEERCRED and SO_PEERGROUPS, as of the moment of connect).  Over TCP a
token or a client certificate does; without either there is no TCP listener at all.
"""

from __future__ import annotations

import array
import contextlib
import grp
import hmac
import os
import socket
import struct
from dataclasses import dataclass, field

__all__ = ["Access", "Peer", "peer_of"]

_SO_PEERGROUPS = 59  # Linux 4.13, asm-generic/socket.h
_GROUPS_BYTES = 1024  # 256 groups: the most that Python's getsockopt returns


@dataclass(frozen=True, slots=True)
class Peer:
    """The other end of one connection; uid -1: it came over the network."""

    uid: int = -1
    groups: frozenset[int] = frozenset()
    certified: bool = False  # showed a client certificate that we trust


def peer_of(connection: socket.socket) -> Peer:
    """The credentials of a Unix connection's other end; `Peer()` for other families."""
    if connection.family != socket.AF_UNIX:
        return Peer()
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, uid, gid = struct.unpack("3i", raw)
    groups = array.array("I")
    with contextlib.suppress(OSError):  # ERANGE, more of them: then its primary group alone speaks for it
        groups.frombytes(connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _GROUPS_BYTES))
    return Peer(uid, frozenset({gid, *groups}))


@dataclass(frozen=True, slots=True)
class Access:
    """Who may write: root, the daemon's own user, members of `group`, and whoever has the token or a certificate."""

    group: int | None = None
    tokens: frozenset[bytes] = frozenset()
    read_only: bool = False  # the page's listener: everybody may read, nobody may write
    owner: int = field(default_factory=os.geteuid)

    def may_read(self, peer: Peer, authorization: str) -> bool:
        """Whoever could open the Unix socket may read: its mode is the gate.  Others need what writing needs."""
        return self.read_only or peer.uid >= 0 or peer.certified or self._has_token(authorization)

    def may_write(self, peer: Peer, authorization: str) -> bool:
        if self.read_only:
            return False
        if peer.uid in (0, self.owner) or (self.group is not None and self.group in peer.groups):
            return True
        return peer.certified or self._has_token(authorization)

    def _has_token(self, authorization: str) -> bool:
        scheme, _, given = authorization.partition(" ")
        if scheme.lower() != "bearer":
            return False
        return any([hmac.compare_digest(given.strip().encode(), token) for token in self.tokens])

    def refusal(self, peer: Peer) -> str:
        """One line that says which right is missing."""
        if self.read_only:
            return "nothing can be changed here: that needs the daemon's Unix socket (`ku`), or [tcp] with a token"
        if peer.uid < 0:
            return "this needs the daemon's token (Authorization: Bearer ...) or a client certificate that it trusts"
        needed = "root" if self.owner == 0 else f"root or user {self.owner}"
        if self.group is not None:
            try:
                name = grp.getgrgid(self.group).gr_name
            except KeyError:
                name = str(self.group)
            needed = f"{needed}, or membership of group {name}"
        return f"user {peer.uid} may read but not change anything: that needs {needed}"
