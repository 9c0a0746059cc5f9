"""Compiled clients and a sink, so that what is measured is the way between them and not an interpreter.

Sockets and addresses come from Python; the loops make system calls alone.  `poll`, because struct pollfd is the same
on every machine.
"""

import numpy as np
from numba import types

from kuproxy.dataplane._jit import kernel
from kuproxy.drivers._libc import EAGAIN, MSG_DONTWAIT, POLLIN, POLLOUT, errno, now_ns, poll, sendmmsg

_socket = types.ExternalFunction("socket", types.int32(types.int32, types.int32, types.int32))
_connect = types.ExternalFunction("connect", types.int32(types.int32, types.uintp, types.uint32))
_close = types.ExternalFunction("close", types.int32(types.int32))
_send = types.ExternalFunction("send", types.intp(types.int32, types.uintp, types.uintp, types.int32))
_recv = types.ExternalFunction("recv", types.intp(types.int32, types.uintp, types.uintp, types.int32))
_recvmmsg = types.ExternalFunction(
    "recvmmsg", types.int32(types.int32, types.uintp, types.uint32, types.int32, types.uintp)
)

_AF_INET, _SOCK_STREAM, _SOCK_NONBLOCK = 2, 1, 0o4000  # asm-generic, x86 and arm64
_EINPROGRESS = 115
_MSG_NOSIGNAL = 0x4000
_MSG_WAITFORONE = 0x10000
_MOST_FAILURES = 1000
_POLL_MS = 100

REQUESTS, FAILURES = 0, 1  # places in `counts`


@kernel
def _new_connection(polls, slot, address, counts):
    """Begin to connect; polls[slot] waits for it."""
    fd = _socket(np.int32(_AF_INET), np.int32(_SOCK_STREAM | _SOCK_NONBLOCK), np.int32(0))
    polls[slot, 0] = fd
    polls[slot, 1] = POLLOUT
    if fd >= 0 and _connect(fd, address.ctypes.data, np.uint32(len(address))) != 0 and errno() != _EINPROGRESS:
        counts[FAILURES] += 1
    if fd < 0:
        counts[FAILURES] += 1


@kernel
def connect_close(polls, address, request, buffer, counts, duration_ns):
    """Connect, ask, read until the server closes; again and again, len(polls) connections at a time.

    `polls` is int32[n, 2] (struct pollfd), `address` struct sockaddr_in as bytes, `counts` int64[2].  Returns the
    nanoseconds that it took.
    """
    start = now_ns()
    for slot in range(len(polls)):
        _new_connection(polls, slot, address, counts)
    while now_ns() - start < duration_ns and counts[FAILURES] < _MOST_FAILURES:
        poll(polls.ctypes.data, np.uint64(len(polls)), np.int32(_POLL_MS))
        for slot in range(len(polls)):
            fd = polls[slot, 0]
            came = polls[slot, 1] >> 16
            waited = polls[slot, 1] & 0xFFFF
            if came == 0:
                continue
            polls[slot, 1] = waited
            if waited == POLLOUT:
                if _send(fd, request.ctypes.data, np.uint64(len(request)), np.int32(_MSG_NOSIGNAL)) == len(request):
                    polls[slot, 1] = POLLIN
                    continue
                counts[FAILURES] += 1
            else:
                got = _recv(fd, buffer.ctypes.data, np.uint64(len(buffer)), np.int32(MSG_DONTWAIT))
                if got > 0:
                    continue
                if got < 0 and errno() == EAGAIN:
                    continue
                if got == 0:
                    counts[REQUESTS] += 1
                else:
                    counts[FAILURES] += 1
            _close(fd)
            _new_connection(polls, slot, address, counts)
    taken = now_ns() - start
    for slot in range(len(polls)):
        if polls[slot, 0] >= 0:
            _close(polls[slot, 0])
    return taken


@kernel
def keep_alive(polls, request, answer_bytes, buffer, counts, since, missing, latencies, duration_ns):
    """Ask over every connection of `polls` again as soon as it has answered with `answer_bytes`.

    `since` and `missing` are int64[n], `latencies` uint32[most requests] in nanoseconds.  Returns the nanoseconds.
    """
    start = now_ns()
    for slot in range(len(polls)):
        since[slot] = now_ns()
        missing[slot] = answer_bytes
        polls[slot, 1] = POLLIN
        _send(polls[slot, 0], request.ctypes.data, np.uint64(len(request)), np.int32(_MSG_NOSIGNAL))
    while counts[REQUESTS] < len(latencies) and counts[FAILURES] == 0:
        now = now_ns()
        if now - start >= duration_ns:
            break
        poll(polls.ctypes.data, np.uint64(len(polls)), np.int32(_POLL_MS))
        for slot in range(len(polls)):
            came = polls[slot, 1] >> 16
            polls[slot, 1] = POLLIN
            if came == 0:
                continue
            got = _recv(polls[slot, 0], buffer.ctypes.data, np.uint64(len(buffer)), np.int32(MSG_DONTWAIT))
            if got <= 0:
                if got == 0 or errno() != EAGAIN:
                    counts[FAILURES] += 1
                continue
            missing[slot] -= got
            if missing[slot] <= 0 and counts[REQUESTS] < len(latencies):
                now = now_ns()
                latencies[counts[REQUESTS]] = now - since[slot]
                counts[REQUESTS] += 1
                since[slot] = now
                missing[slot] = answer_bytes
                _send(polls[slot, 0], request.ctypes.data, np.uint64(len(request)), np.int32(_MSG_NOSIGNAL))
    return now_ns() - start


@kernel
def send_datagrams(sockets, messages, batch, rate, polls, counts, duration_ns):
    """Send `messages` (see datagrams) over the sockets in turn, `batch` at a time, `rate` a second (0: all it can).

    Returns the nanoseconds; counts[REQUESTS] is how many the kernel took.
    """
    start = now_ns()
    turn = 0
    taken = np.int64(0)
    while taken < duration_ns:
        taken = now_ns() - start
        if rate != 0 and counts[REQUESTS] * 1_000_000_000 >= taken * rate:
            poll(polls.ctypes.data, np.uint64(0), np.int32(1))  # sleeps
            continue
        sent = sendmmsg(sockets[turn], messages.ctypes.data, np.uint32(batch), np.int32(0))
        if sent > 0:
            counts[REQUESTS] += sent
        else:
            counts[FAILURES] += 1
        turn += 1
        if turn == len(sockets):
            turn = 0
    return taken


@kernel
def sink(fd, messages, counts):
    """Receive and count, for as long as counts[FAILURES] is 0."""
    size = len(messages) // MESSAGE_BYTES
    while counts[FAILURES] == 0:
        got = _recvmmsg(fd, messages.ctypes.data, np.uint32(size), np.int32(_MSG_WAITFORONE), np.uint64(0))
        if got > 0:
            counts[REQUESTS] += got


MESSAGE_BYTES = 64  # struct mmsghdr, 64-bit


def datagrams(count: int, payload_bytes: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """struct mmsghdr[count] as bytes, each with a buffer of its own; and what must be kept alive with it."""
    data = np.zeros((count, payload_bytes), np.uint8)
    vectors = np.zeros((count, 2), np.uint64)  # struct iovec
    vectors[:, 0] = data.ctypes.data + np.arange(count, dtype=np.uint64) * np.uint64(payload_bytes)
    vectors[:, 1] = payload_bytes
    messages = np.zeros((count, MESSAGE_BYTES // 8), np.uint64)
    messages[:, 2] = vectors.ctypes.data + np.arange(count, dtype=np.uint64) * np.uint64(16)
    messages[:, 3] = 1
    return messages.reshape(-1).view(np.uint8), [data, vectors]
