"""JSON messages with descriptors, over a pair of connected SEQPACKET sockets: how our own processes talk.

The standard library alone, because the keeper uses it.
"""

from __future__ import annotations

import json
import socket
import struct
from array import array
from collections.abc import Sequence
from typing import Any

__all__ = ["AT_ONCE", "pair", "receive", "send"]

AT_ONCE = 200  # descriptors in one message, at most; the kernel's own limit is 253 (SCM_MAX_FD)
_LONGEST = 1 << 17


def pair() -> tuple[socket.socket, socket.socket]:
    """Both ends, close-on-exec."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def send(connection: socket.socket, message: dict[str, Any], fds: Sequence[int] = ()) -> None:
    """One message.  Raises OSError when the other side is gone."""
    data = json.dumps(message).encode()
    if fds:
        socket.send_fds(connection, [data], list(fds))
    else:
        connection.send(data)


def receive(connection: socket.socket, flags: int = 0) -> tuple[dict[str, Any], list[int]] | None:
    """The next message with its descriptors (close-on-exec), None when the other side is gone.

    With MSG_DONTWAIT in `flags`, raises BlockingIOError when there is none.
    """
    room = socket.CMSG_SPACE(AT_ONCE * struct.calcsize("i"))
    try:
        # Not socket.recv_fds(), which ignores its flags (CPython 3.11).
        data, ancillary, _, _ = connection.recvmsg(_LONGEST, room, flags | socket.MSG_CMSG_CLOEXEC)
    except ConnectionResetError:
        return None
    fds = array("i")
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(content[: len(content) // fds.itemsize * fds.itemsize])
    return (json.loads(data), fds.tolist()) if data else None
