"""Live traffic through one TCP service: workers alone, with the flow cache, and nftables.

    PYTHONPATH=src:tests:. python -m bench.live_cache [ROUNDS]

Three networks stand side by side, alike but for what translates; rounds take turns, in both orders, each after a
warm-up longer than it takes to enter a flow. Needs root, and nft(8) for the third. Writes bench/results/live-cache.csv.
"""

import contextlib
import os
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

from bench import machine, results
from bench.harness import Figure
from netns.test_daemon import Daemon
from netns.world import connect, listener, world

VIP, PORT = "10.96.0.90", 5001
WARM_S, ROUND_S = 1.6, 2.0
CONNECTIONS = 16


def take(opened: socket.socket, peer: str) -> None:
    """Read and forget."""
    room = bytearray(1 << 20)
    while opened.recv_into(room):
        pass


def give_back(opened: socket.socket, peer: str) -> None:
    """Answer every message with itself."""
    opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    while data := opened.recv(64):
        opened.sendall(data)


def repeat(count: int, act: Callable[[int, bool], None]) -> None:
    """In so many threads, first to warm up, then for good."""
    for counts, seconds in ((False, WARM_S), (True, ROUND_S)):
        end = time.monotonic() + seconds

        def run(number: int, end: float = end, counts: bool = counts) -> None:
            while time.monotonic() < end:
                act(number, counts)

        threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def bulk(made: Any, streams: int) -> float:
    """Gb/s from the client to the pod."""
    sent, data = [0] * streams, bytes(1 << 18)
    with contextlib.ExitStack() as stack:
        stack.enter_context(listener(made.pods[0], PORT, take))
        opened = [stack.enter_context(connect(made.client, VIP, PORT)) for _ in range(streams)]

        def act(number: int, counts: bool) -> None:
            opened[number].sendall(data)
            sent[number] += len(data) if counts else 0

        repeat(streams, act)
    return sum(sent) * 8 / ROUND_S / 1e9


def messages(made: Any, connections: int) -> tuple[float, float]:
    """Messages of 32 bytes answered a second, and the slowest of a hundred in ms."""
    taken: list[float] = []
    with contextlib.ExitStack() as stack:
        stack.enter_context(listener(made.pods[0], PORT, give_back))
        opened = [stack.enter_context(connect(made.client, VIP, PORT)) for _ in range(connections)]
        for each in opened:
            each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

        def act(number: int, counts: bool) -> None:
            began = time.perf_counter()
            opened[number].sendall(b"x" * 32)
            opened[number].recv(64)
            if counts:
                taken.append(time.perf_counter() - began)

        repeat(connections, act)
    taken.sort()
    return len(taken) / ROUND_S, taken[len(taken) * 99 // 100] * 1e3


def measure(made: Any) -> dict[tuple[str, str], float]:
    """By metric and unit."""
    rate, p99 = messages(made, CONNECTIONS)
    return {
        ("tcp-1stream", "Gb/s"): bulk(made, 1),
        ("tcp-4stream", "Gb/s"): bulk(made, 4),
        ("keepalive-16conn", "1/s"): rate,
        ("keepalive-16conn-p99", "ms"): p99,
        ("request-response-1conn", "1/s"): messages(made, 1)[0],
    }


@contextlib.contextmanager
def daemon(entries: int) -> Iterator[Any]:
    """A network with `ku daemon`; entries 0: without a cache."""
    os.environ["KU_TEST_FLOW_CACHE"] = str(entries)
    with world() as made:
        running = Daemon(made)
        running.start()
        pod = made.endpoints[0].ipv4
        running.script(f"conf buckets 16384\nvip {VIP} protocol tcp port {PORT} target_port {PORT}\npod {VIP} {pod}")
        try:
            yield made
        finally:
            running.stop()
            running.notified.close()


@contextlib.contextmanager
def nftables() -> Iterator[Any]:
    """A network with the rule that kube-proxy would write, less its chains: the best case."""
    with world() as made:
        rules = (
            "table ip kube { chain pre { type nat hook prerouting priority -100; "
            f"ip daddr {VIP} tcp dport {PORT} dnat to {made.endpoints[0].ipv4}:{PORT}; }}; }}"
        )
        words = ["ip", "netns", "exec", made.node.name, "nft", rules]
        subprocess.run(words, check=True, timeout=10)
        yield SimpleNamespace(client=made.client, pods=made.pods)


def main() -> None:
    """All rounds, then the medians."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    found: dict[tuple[str, str, str], list[float]] = {}
    with contextlib.ExitStack() as stack:
        ways = {"workers": stack.enter_context(daemon(0)), "cache": stack.enter_context(daemon(65536))}
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            ways["nftables"] = stack.enter_context(nftables())
        for number in range(rounds):
            for way, made in list(ways.items())[:: 1 if number % 2 == 0 else -1]:
                for (metric, unit), value in measure(made).items():
                    found.setdefault((metric, way, unit), []).append(value)
    figures = [
        Figure(f"live-{metric}", way, unit, min(v), statistics.median(v), max(v), len(v))
        for (metric, way, unit), v in sorted(found.items())
    ]
    command = f"python -m bench.live_cache {rounds}"
    results.write_csv(results.RESULTS / "live-cache.csv", machine.describe(), command, figures)
    print(results.table(figures))


if __name__ == "__main__":
    main()
