"""The attacker's process: `python -m bench.floods.sender INTERFACE MAC`, in the client's namespace.

A JSON object a line on stdin is an order, a line on stdout the answer. {"flood": name, "aim": {...}, "log2": n} makes
the packets ready, {"seconds": s, "rate": r} sends them: so many a second, for so long, and no longer.
"""

from __future__ import annotations

import json
import socket
import sys
from typing import Any

import numpy as np

from bench.floods import traffic
from bench.floods.traffic import ROW
from bench.live.sockets import MESSAGE_BYTES
from kuproxy.dataplane._jit import kernel
from kuproxy.drivers._libc import now_ns, poll, sendmmsg

_BATCH = 16
_PACKETS = 16_384  # different ones; then they begin anew


@kernel
def send_rows(fd, messages, batch, rate, polls, counts, duration_ns):
    """Send struct mmsghdr[n] (as bytes) in turn, `batch` at a time, `rate` packets a second; returns the nanoseconds.

    counts[0] (int64) is how many the kernel took, counts[1] how often it took none.
    """
    start = now_ns()
    many = len(messages) // MESSAGE_BYTES
    position = 0
    taken = np.int64(0)
    while taken < duration_ns:
        taken = now_ns() - start
        if counts[0] * 1_000_000_000 >= taken * rate:
            poll(polls.ctypes.data, np.uint64(0), np.int32(1))  # sleeps
            continue
        at = messages[position * MESSAGE_BYTES : (position + batch) * MESSAGE_BYTES]
        sent = sendmmsg(fd, at.ctypes.data, np.uint32(batch), np.int32(0))
        if sent > 0:
            counts[0] += sent
        else:
            counts[1] += 1
        position += batch
        if position + batch > many:
            position = 0
    return taken


def messages_of(rows: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
    """struct mmsghdr[n] as bytes, one for each row (uint8[n, ROW]); and what must be kept alive with it."""
    vectors = np.zeros((len(rows), 2), np.uint64)  # struct iovec
    vectors[:, 0] = rows.ctypes.data + np.arange(len(rows), dtype=np.uint64) * np.uint64(ROW)
    vectors[:, 1] = ROW
    messages = np.zeros((len(rows), MESSAGE_BYTES // 8), np.uint64)
    messages[:, 2] = vectors.ctypes.data + np.arange(len(rows), dtype=np.uint64) * np.uint64(16)
    messages[:, 3] = 1
    return messages.reshape(-1).view(np.uint8), [rows, vectors]


class Sender:
    """One raw socket."""

    def __init__(self, interface: str, mac: str) -> None:
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)  # 0: it receives nothing
        self._socket.bind((interface, 0))
        own = self._socket.getsockname()[4]
        self._macs = np.frombuffer(bytes.fromhex(mac.replace(":", "")) + own, np.uint8)
        self._messages, self._kept = messages_of(np.zeros((_BATCH, ROW), np.uint8))
        self._send(0.0, 1)  # compiles it, and sends nothing

    def _send(self, seconds: float, rate: int) -> dict[str, float]:
        counts = np.zeros(2, np.int64)
        taken = send_rows(
            self._socket.fileno(), self._messages, _BATCH, rate, np.zeros((1, 2), np.int32), counts,
            int(seconds * 1e9),
        )  # fmt: skip
        return {"seconds": taken / 1e9, "sent": int(counts[0]), "refused": int(counts[1])}

    def carry_out(self, order: dict[str, Any]) -> dict[str, Any]:
        """See above."""
        if "flood" not in order:
            return self._send(order["seconds"], order["rate"])
        aim = traffic.Aim(**order["aim"])
        rows = np.ascontiguousarray(traffic.flood(order["flood"], _PACKETS, order["log2"], aim).rows)
        rows[:, :12] = self._macs
        self._messages, self._kept = messages_of(rows)
        return {"ready": True}


def main() -> None:
    sender = Sender(*sys.argv[1:3])
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        print(json.dumps(sender.carry_out(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
