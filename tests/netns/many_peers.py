"""The two ends of very many TCP connections: `python -I -S many_peers.py serve PORT` and `... ask` (see `main`).

Processes of their own, with the standard library alone, because ten thousand sockets need a descriptor table and a CPU
to themselves.  Each does everything in one thread around one epoll, without garbage collection: what is measured are
gaps of some milliseconds, so nothing here may make one.
"""

from __future__ import annotations

import array
import gc
import json
import os
import resource
import select
import socket
import struct
import sys
import time
from typing import Any

MESSAGE = struct.Struct("=IIQ")  # connection, number of its message, when it was sent (monotonic ns)
_TURN_S = 0.002  # messages are sent in small bursts of so much time's worth
_OPENING = 200  # connections that are being opened at the same time; listeners have room for more
_OPEN_WITHIN_S = 40.0
_ANSWER_WITHIN_S = (
    3.0  # what is not answered then is lost for good; a segment is sent again after 200, 600, 1400 ms
)


def _many_files() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def lost() -> int:
    """Segments that this network namespace's TCP has sent again, less those that it has received twice.

    Summed over both ends, that is what the network has lost: a segment that was merely late is sent again too, but then
    the other end gets it twice, and says so (DSACK, RFC 2883; `net/ipv4/proc.c` has the names).
    """
    counters: dict[str, int] = {}
    for path in ("/proc/net/snmp", "/proc/net/netstat"):
        with open(path, encoding="ascii") as file:
            rows = [line.split() for line in file]
        for names, values in zip(rows[::2], rows[1::2], strict=True):
            counters |= {f"{names[0]}{n}": int(v) for n, v in zip(names[1:], values[1:], strict=True)}
    twice = counters["TcpExt:TCPDSACKOldSent"] + counters["TcpExt:TCPDSACKOfoSent"]
    return counters["Tcp:RetransSegs"] - twice


def serve(port: int) -> None:
    """Send back whatever comes.  A line on stdin is answered with `lost`."""
    listening = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
    listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.bind(("::", port))
    listening.listen(4096)
    listening.setblocking(False)
    epoll = select.epoll()
    epoll.register(listening, select.EPOLLIN)
    epoll.register(0, select.EPOLLIN)
    connections: dict[int, socket.socket] = {}
    print("ready", flush=True)
    while True:
        for fd, _ in epoll.poll():
            opened = connections.get(fd)
            if opened is not None:
                try:
                    data = opened.recv(4096)
                    if data:
                        opened.send(data)
                        continue
                except BlockingIOError:
                    continue
                except OSError:
                    pass
                del connections[fd]  # and with it the socket, which epoll forgets
                opened.close()
            elif fd == 0:
                if not os.read(0, 4096):
                    return
                print(lost(), flush=True)
            else:
                for _ in range(_OPENING):
                    try:
                        accepted, _ = listening.accept()
                    except OSError:
                        break
                    accepted.setblocking(False)
                    accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    connections[accepted.fileno()] = accepted
                    epoll.register(accepted, select.EPOLLIN)


class Asker:
    """All connections of the client: a message on each in turn, at most one under way on each."""

    def __init__(self, plan: dict[str, Any]) -> None:
        """`plan`: connections, targets [[address, port, own address], ...], rate (messages a second)."""
        self._plan = plan
        self._epoll = select.epoll()
        self._sockets: list[socket.socket | None] = []
        self._by_fd: dict[int, int] = {}
        self._numbers = array.array("I", bytes(4 * plan["connections"]))
        self._waiting = bytearray(plan["connections"])
        self._next, self._began, self._turns = 0, 0.0, 0
        self._opening = 0
        self.broken: dict[str, int] = {}
        self.begin()

    def begin(self) -> None:
        """Forget the figures so far (not what is broken): a new stretch of time begins."""
        now = time.monotonic_ns()
        self._window_ns = self._last_ns = now
        self._gap_ns = self._gap_at_ns = 0
        self._latencies = array.array("Q")
        self.sent = self.late = 0
        self._broken_before = dict(self.broken)
        self._lost_before = lost()

    # --- opening ---------------------------------------------------------------------------------------------

    def open_all(self) -> None:
        """Raises SystemExit with the reason when one cannot be opened."""
        deadline = time.monotonic() + _OPEN_WITHIN_S
        total, opened = self._plan["connections"], 0
        while opened < total:
            while self._opening < _OPENING and len(self._sockets) < total:
                self._open(len(self._sockets))
            for fd, _ in self._epoll.poll(1.0):
                index = self._by_fd[fd]
                one = self._sockets[index]
                assert one is not None
                error = one.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if error:
                    sys.exit(f"connection {index}: {os.strerror(error)}")
                self._epoll.modify(fd, select.EPOLLIN)
                self._opening -= 1
                opened += 1
            if time.monotonic() > deadline:
                sys.exit(f"only {opened} of {total} connections were open after {_OPEN_WITHIN_S:g} s")
        self._began = time.monotonic()

    def _open(self, index: int) -> None:
        targets = self._plan["targets"]
        address, port, own = targets[index % len(targets)]
        one = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
        one.setblocking(False)
        one.setsockopt(socket.IPPROTO_IP, 24, 1)  # IP_BIND_ADDRESS_NO_PORT: connect chooses, per 4-tuple
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        one.bind((own, 0))
        one.connect_ex((address, port))
        self._sockets.append(one)
        self._by_fd[one.fileno()] = index
        self._epoll.register(one, select.EPOLLOUT)
        self._opening += 1

    # --- talking ---------------------------------------------------------------------------------------------

    def talk(self, commands: bool = True) -> bool:
        """One turn: send what is due, take what has come.  True: a command waits on stdin."""
        now = time.monotonic()
        due = int((now - self._began) * self._plan["rate"])
        if due - self._turns > self._plan["rate"]:
            self._turns = due - 1  # after a stop of the whole machine nobody catches up
        while self._turns < due:
            self._turns += 1
            self._send()
        command = False
        for fd, _ in self._epoll.poll(_TURN_S):
            if fd == 0:
                command = True
            else:
                self._receive(fd)
        return command and commands

    def _send(self) -> None:
        index = self._next
        self._next = (index + 1) % len(self._sockets)
        one = self._sockets[index]
        if one is None:
            return
        if self._waiting[index]:
            self.late += 1
            return
        self._numbers[index] += 1
        try:
            one.send(MESSAGE.pack(index, self._numbers[index], time.monotonic_ns()))
        except OSError as error:
            self._break(index, error.strerror or str(error))
            return
        self._waiting[index] = 1
        self.sent += 1

    def _receive(self, fd: int) -> None:
        index = self._by_fd[fd]
        one = self._sockets[index]
        if one is None:
            return
        try:
            data = one.recv(64)
        except BlockingIOError:
            return
        except OSError as error:
            self._break(index, error.strerror or str(error))
            return
        now = time.monotonic_ns()
        if not data:
            self._break(index, "closed by the other end")
            return
        # Messages of 16 bytes, one under way: they come in one piece, and alone.
        if len(data) != MESSAGE.size:
            self._break(index, f"an answer of {len(data)} bytes")
            return
        answered, number, sent_ns = MESSAGE.unpack(data)
        if (answered, number) != (index, self._numbers[index]) or not self._waiting[index]:
            self._break(index, "an answer to another message")
            return
        self._waiting[index] = 0
        self._latencies.append(now - sent_ns)
        if now - self._last_ns > self._gap_ns:
            self._gap_ns, self._gap_at_ns = now - self._last_ns, self._last_ns - self._window_ns
        self._last_ns = now

    def _break(self, index: int, why: str) -> None:
        one = self._sockets[index]
        assert one is not None
        self.broken[why] = self.broken.get(why, 0) + 1
        self._by_fd.pop(one.fileno())
        one.close()
        self._sockets[index] = None
        self._waiting[index] = 0

    # --- telling ---------------------------------------------------------------------------------------------

    def report(self) -> dict[str, Any]:
        """Figures since `begin`; messages under way get time to be answered, while others go on."""
        seconds = (time.monotonic_ns() - self._window_ns) / 1e9
        waiting = {i: self._numbers[i] for i, flag in enumerate(self._waiting) if flag}
        deadline = time.monotonic() + _ANSWER_WITHIN_S
        while waiting and time.monotonic() < deadline:
            self.talk(commands=False)
            waiting = {i: n for i, n in waiting.items() if self._waiting[i] and self._numbers[i] == n}
        silence = time.monotonic_ns() - self._last_ns
        if silence > self._gap_ns:
            self._gap_ns, self._gap_at_ns = silence, self._last_ns - self._window_ns

        ordered = sorted(self._latencies)

        def quantile(share: float) -> float:
            return ordered[min(len(ordered) - 1, int(len(ordered) * share))] / 1e6 if ordered else -1.0

        new = {why: n - self._broken_before.get(why, 0) for why, n in self.broken.items()}
        return {
            "connections": len(self._by_fd),
            "broken": {why: n for why, n in new.items() if n},
            "seconds": seconds,
            "sent": self.sent,
            "answered": len(ordered),
            "unanswered": len(waiting),
            "late_turns": self.late,
            "longest_gap_ms": self._gap_ns / 1e6,
            "longest_gap_at_s": self._gap_at_ns / 1e9,
            "latency_ms": {"p50": quantile(0.5), "p99": quantile(0.99), "max": quantile(1.0)},
            # A segment that was lost is sent again after 200 ms at the earliest (TCP_RTO_MIN).
            "delayed": sum(each >= 190_000_000 for each in ordered),
            "lost": lost() - self._lost_before,
        }


def ask(plan: dict[str, Any]) -> None:
    """Open, say `ready`, then obey lines on stdin: `begin`, `report`; its end ends everything."""
    asker = Asker(plan)
    asker.open_all()
    asker._epoll.register(0, select.EPOLLIN)
    print("ready", flush=True)
    while True:
        if not asker.talk():
            continue
        words = os.read(0, 4096).decode().split()
        if not words:
            return
        for word in words:
            if word == "begin":
                asker.begin()
                print("{}", flush=True)
            else:
                print(json.dumps(asker.report()), flush=True)


def main() -> None:
    """`serve PORT`, or `ask PLAN`, the latter as JSON."""
    _many_files()
    gc.disable()
    if sys.argv[1] == "serve":
        serve(int(sys.argv[2]))
    else:
        ask(json.loads(sys.argv[2]))


if __name__ == "__main__":
    main()
