"""JSON messages with descriptors, over a pair of connected SEQPACKET sockets: how our own processes talk.

The standard library alone, because the keeper uses it.
"""

from __future__ import annotations

import json
import os
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

    With MSG_DONTWAIT in `flags`, raises BlockingIOError when there is none.  Raises ValueError for what is no message,
    or was cut: its descriptors are closed, and the next one can be received.
    """
    room = socket.CMSG_SPACE(AT_ONCE * struct.calcsize("i"))
    try:
        # Not socket.recv_fds(), which ignores its flags (CPython 3.11).
        data, ancillary, marks, _ = connection.recvmsg(_LONGEST, room, flags | socket.MSG_CMSG_CLOEXEC)
    except ConnectionResetError:
        return None
    fds = array("i")
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(content[: len(content) // fds.itemsize * fds.itemsize])
    if not data:
        return None
    try:
        if marks & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            raise ValueError("it is too long")
        message = json.loads(data)
        if not isinstance(message, dict):
            raise ValueError("it is no object")
    except (ValueError, RecursionError) as error:
        for fd in fds:
            os.close(fd)
        raise ValueError(f"no message: {error}") from None
    return message, fds.tolist()
