"""Netlink by hand, for what is read often and in bulk: messages and their attributes, as bytes.

A message of pyroute2 costs a tenth of a millisecond, one of these some ten microseconds; a node with a hundred pods has
hundreds of routes and neighbours, and whenever one of them changes the flow cache has to know them anew.
Layouts: include/uapi/linux/netlink.h, rtnetlink.h, netfilter/nfnetlink.h.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator

from ..errors import SteeringError

__all__ = ["Events", "attributes", "dump", "nested", "number", "text"]

_HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence number, port
_ERROR, _DONE = 2, 3  # NLMSG_ERROR, NLMSG_DONE
_REQUEST, _DUMP = 0x001, 0x300
_DUMP_INTERRUPTED = 0x10  # NLM_F_DUMP_INTR
_TYPE_MASK = 0x3FFF  # NLA_TYPE_MASK: without NLA_F_NESTED and NLA_F_NET_BYTEORDER
_SOL_NETLINK, _GET_STRICT_CHK = 270, 12
_ROOM = 1 << 18
_TRIES = 5


def dump(family: int, kind: int, body: bytes, *, strict: bool = False) -> list[tuple[int, bytes]]:
    """(type, payload) of everything that the kernel lists; `strict`: that fits the attributes in `body`.

    Raises FileNotFoundError where it does not know what was asked for, SteeringError for whatever else it refuses.
    """
    for _ in range(_TRIES):
        try:
            with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, family) as asking:
                if strict:
                    asking.setsockopt(_SOL_NETLINK, _GET_STRICT_CHK, 1)
                header = _HEADER.pack(_HEADER.size + len(body), kind, _REQUEST | _DUMP, 1, 0)
                asking.send(header + body)
                found, interrupted = _answer(asking)
        except OSError as error:
            if error.errno in (errno.EPROTONOSUPPORT, errno.EINVAL, errno.EOPNOTSUPP, errno.EAFNOSUPPORT):
                raise FileNotFoundError(error.errno, os.strerror(error.errno)) from error
            raise SteeringError(f"asking the kernel for messages of type {kind}: {error.strerror}") from error
        if not interrupted:
            return found
    raise SteeringError(f"messages of type {kind} change faster than they can be read")


def _answer(asking: socket.socket) -> tuple[list[tuple[int, bytes]], bool]:
    found: list[tuple[int, bytes]] = []
    interrupted = False
    while True:
        for kind, flags, payload in _messages(asking.recv(_ROOM)):
            interrupted |= bool(flags & _DUMP_INTERRUPTED)
            if kind == _DONE:
                return found, interrupted
            if kind == _ERROR:
                code = -struct.unpack_from("=i", payload)[0]
                raise OSError(code, os.strerror(code))
            found.append((kind, payload))


def _messages(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    at = 0
    while at + _HEADER.size <= len(data):
        length, kind, flags, _, _ = _HEADER.unpack_from(data, at)
        yield kind, flags, data[at + _HEADER.size : at + length]
        at += length + 3 & ~3


def attributes(data: bytes, at: int = 0) -> dict[int, bytes]:
    """Type → value, from an offset on; of a type that occurs more than once the last."""
    found = {}
    while at + 4 <= len(data):
        length, kind = struct.unpack_from("=HH", data, at)
        if length < 4:
            break
        found[kind & _TYPE_MASK] = data[at + 4 : at + length]
        at += length + 3 & ~3
    return found


def nested(found: dict[int, bytes], kind: int) -> dict[int, bytes]:
    """The attributes within an attribute, none where it is missing."""
    return attributes(found.get(kind, b""))


def number(found: dict[int, bytes], kind: int, missing: int = 0) -> int:
    """An attribute that is a number of four bytes, in the host's order."""
    return int(struct.unpack_from("=I", found[kind])[0]) if kind in found else missing


def text(value: bytes) -> str:
    """A string that ends with a zero."""
    return value.partition(b"\0")[0].decode(errors="replace")


class Events:
    """Messages that the kernel sends unasked, to groups of a family."""

    def __init__(self, family: int, groups: int) -> None:
        """`groups`: a bit for each, the first being 1.  Raises OSError."""
        kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        self._socket = socket.socket(socket.AF_NETLINK, kind, family)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
            self._socket.bind((0, groups))
        except BaseException:
            self._socket.close()
            raise

    def fileno(self) -> int:
        return self._socket.fileno()

    def take(self) -> list[tuple[int, bytes]] | None:
        """(type, payload) of all that has come, without waiting; None: some were thrown away."""
        found: list[tuple[int, bytes]] | None = []
        while True:
            try:
                data = self._socket.recv(_ROOM)
            except BlockingIOError:
                return found
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                # And on: until its queue is empty the kernel throws further events away without another word
                # (NETLINK_S_CONGESTED), and whoever reads anew must not do so before.
                found = None
            else:
                if found is not None:
                    found += [(kind, payload) for kind, _, payload in _messages(data)]

    def close(self) -> None:
        """Idempotent."""
        self._socket.close()
