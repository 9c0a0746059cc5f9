"""The process in the client and the one in the pod: `python -m bench.live.ends client|sink PORT`.

A JSON object a line on stdin is an order, a line on stdout the answer.  The client's orders are {"load": name, ...},
the sink's anything: it answers with how many datagrams have come.  With {"warm": seconds} the client does for so long
what it is about to do over the same sockets, says {"warm": true}, and goes on with the next line.
"""

import json
import socket
import struct
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import numpy as np

from bench.live import sockets

DATAGRAM = 22  # bytes of payload in a frame of 64
_BUFFER = 8 << 20
_SO_RCVBUFFORCE = 33  # include/uapi/asm-generic/socket.h
_MOST_REQUESTS = 5_000_000
_PATIENCE_S = 10.0

Answer = dict[str, float]
Warmed = Callable[[], None]


def _at_once() -> None:
    """Nobody has to be told."""


def _request(close: bool) -> np.ndarray:
    ending = b"Connection: close\r\n\r\n" if close else b"\r\n"
    return np.frombuffer(b"GET / HTTP/1.1\r\nHost: bench\r\n" + ending, np.uint8)


def _close(address: str, port: int, seconds: float, parallel: int) -> Answer:
    counts = np.zeros(2, np.int64)
    name = struct.pack("=HH4s8x", socket.AF_INET, socket.htons(port), socket.inet_aton(address))  # struct sockaddr_in
    taken = sockets.connect_close(
        np.zeros((parallel, 2), np.int32),
        np.frombuffer(name, np.uint8),
        _request(close=True),
        np.zeros(65536, np.uint8),
        counts,
        int(seconds * 1e9),
    )
    return {"seconds": taken / 1e9, "requests": int(counts[0]), "failures": int(counts[1])}


def _keep(
    address: str, port: int, seconds: float, parallel: int, warm: float = 0.0, warmed: Warmed = _at_once
) -> Answer:
    request = _request(close=False)
    with ExitStack() as opened:
        connections = [
            opened.enter_context(socket.create_connection((address, port), _PATIENCE_S)) for _ in range(parallel)
        ]
        answer_bytes = 0
        if connections:
            connections[0].sendall(request.tobytes())
            answer_bytes = len(connections[0].recv(65536))
        polls = np.zeros((parallel, 2), np.int32)
        polls[:, 0] = [each.fileno() for each in connections]
        latencies = np.zeros(_MOST_REQUESTS, np.uint32)

        def ask(seconds: float) -> tuple[int, np.ndarray]:
            counts = np.zeros(2, np.int64)
            since, missing = np.zeros(parallel, np.int64), np.zeros(parallel, np.int64)
            taken = sockets.keep_alive(
                polls,
                request,
                answer_bytes,
                np.zeros(65536, np.uint8),
                counts,
                since,
                missing,
                latencies,
                int(seconds * 1e9),
            )
            return taken, counts

        if warm:
            ask(warm)
            for each in connections:  # what is still on its way is nobody's answer later
                _drain(each, answer_bytes)
        warmed()
        taken, counts = ask(seconds)
    requests = int(counts[0])
    p50, p99, p999 = np.percentile(latencies[:requests], (50, 99, 99.9)) / 1e3 if requests else (0, 0, 0)
    return {
        "seconds": taken / 1e9,
        "requests": requests,
        "failures": int(counts[1]),
        "p50": float(p50),
        "p99": float(p99),
        "p999": float(p999),
    }


def _drain(opened: socket.socket, size: int) -> None:
    """The answer to the last request, which was sent when time was over."""
    opened.settimeout(_PATIENCE_S)
    while size > 0:
        got = len(opened.recv(size))
        if not got:
            return
        size -= got


def _udp(
    address: str,
    port: int,
    seconds: float,
    parallel: int,
    rate: int = 0,
    warm: float = 0.0,
    warmed: Warmed = _at_once,
) -> Answer:
    batch = 32 if rate == 0 else max(1, min(32, rate // 1000))
    messages, kept = sockets.datagrams(batch, DATAGRAM)
    counts = np.zeros(2, np.int64)
    with ExitStack() as opened:
        fds = []
        for _ in range(parallel):
            each = opened.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            each.connect((address, port))
            fds.append(each.fileno())

        def send(seconds: float, counts: np.ndarray) -> int:
            polls = np.zeros((1, 2), np.int32)
            places = np.array(fds, np.int32)
            return int(sockets.send_datagrams(places, messages, batch, rate, polls, counts, int(seconds * 1e9)))

        if warm:
            send(warm, np.zeros(2, np.int64))
        warmed()
        taken = send(seconds, counts)
    del kept
    return {"seconds": taken / 1e9, "sent": int(counts[0])}


_LOADS: dict[str, Callable[..., Answer]] = {"close": _close, "keep": _keep, "udp": _udp}


def _client() -> Callable[[dict[str, Any]], Answer]:
    for load in _LOADS.values():
        load("127.0.0.1", 9, 0.0, 0)  # compiles it, and does nothing
    return lambda order: _LOADS[order.pop("load")](**order)


def _sink(port: int) -> Callable[[dict[str, Any]], Answer]:
    opened = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    opened.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
    opened.bind(("0.0.0.0", port))
    messages, kept = sockets.datagrams(64, 2048)
    counts = np.array([0, 1], np.int64)
    sockets.sink(opened.fileno(), messages, counts)  # compiles it, and ends at once
    counts[1] = 0

    def receive() -> None:
        sockets.sink(opened.fileno(), messages, counts)
        del kept[:]

    threading.Thread(target=receive, daemon=True).start()
    return lambda order: {"received": int(counts[0])}


def _tell_and_wait() -> None:
    print(json.dumps({"warm": True}), flush=True)
    sys.stdin.readline()


def main() -> None:
    answer = _client() if sys.argv[1] == "client" else _sink(int(sys.argv[2]))
    print(json.dumps({"ready": True}), flush=True)
    for line in iter(sys.stdin.readline, ""):
        order = json.loads(line)
        if order.get("warm"):
            order["warmed"] = _tell_and_wait
        print(json.dumps(answer(order)), flush=True)


if __name__ == "__main__":
    main()
