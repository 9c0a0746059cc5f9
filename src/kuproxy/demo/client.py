"""What runs in the client (and on the node): real connections to the Service, each judged.

`python -m kuproxy.demo.client PLAN` with a `Plan` as JSON.  New connections and datagrams come at a steady rate, round
robin over the targets; kept connections, TCP and UDP, ask again and again and must neither break nor change their pod.
Every request has 3 s; one without an answer has failed, and nothing is asked twice.

Lines of JSON come on stdin: {"phase": name} names what is counted from now on, {"drained": [pod]} forbids pods to new
connections, {"finish": true} ends it.  Lines of JSON go to stdout: a `Tally` four times a second, and at the end with
"final" true.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import socket
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from ipaddress import ip_address
from typing import Any

from kuproxy.demo.pods import LARGE, large_body

TIMEOUT_S = 3.0
AT_ONCE = 48  # new connections under way; beyond, the rate falls
LARGE_EVERY = 20
TELL_EVERY_S = 0.25
MAX_EXAMPLES = 10
# Sockets for one datagram get ports of their own, below Linux's ephemeral range (32768): a port that the kernel
# gave twice within 40 s would be one flow, with one pod, and no new one.
FIRST_PORT, LAST_PORT = 12000, 32000


class Wrong(Exception):
    """An answer that came, and is not what it should be."""


@dataclass(frozen=True, slots=True)
class Target:
    """One way to a Service; `kind` is tcp or udp."""

    label: str
    kind: str
    address: str
    port: int

    @property
    def family(self) -> socket.AddressFamily:
        return socket.AF_INET6 if ip_address(self.address).version == 6 else socket.AF_INET


@dataclass(slots=True)
class Plan:
    """`requests` new connections or datagrams over about `seconds`, `kept` connections (a fifth of them UDP)."""

    targets: list[Target]
    requests: int
    seconds: float
    kept: int = 0
    kept_interval_s: float = 0.1

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Plan:
        values = json.loads(text)
        return cls(**values | {"targets": [Target(**each) for each in values["targets"]]})


@dataclass(slots=True)
class Tally:
    """What has been counted so far."""

    new: int = 0  # requests over connections (or sockets) of their own
    new_failed: int = 0
    kept_requests: int = 0
    kept_failed: int = 0
    kept_open: int = 0
    broken: int = 0  # kept connections that ended, stalled or changed their pod
    on_drained: int = 0  # kept connections that go on at a drained pod
    per_phase: dict[str, dict[str, int]] = field(default_factory=dict)  # new requests: phase → pod → number
    per_target: dict[str, int] = field(default_factory=dict)
    kept_per_pod: dict[str, int] = field(default_factory=dict)  # requests over kept connections
    examples: list[str] = field(default_factory=list)  # of failures
    final: bool = False

    def line(self, requests: int) -> str:
        """For the progress."""
        return (
            f"{self.new} of {requests} new connections, {self.kept_requests} requests over {self.kept_open} kept, "
            f"{self.new_failed + self.kept_failed} failed, {self.broken} broken"
        )


class Load:
    """One client's work."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.tally = Tally()
        self._phase = ""
        self._drained: frozenset[str] = frozenset()
        self._finish = asyncio.Event()
        self._kept_pods: Counter[str] = Counter()
        self._ports = itertools.cycle(range(FIRST_PORT, LAST_PORT))

    # --- orders and reports --------------------------------------------------------------------------------

    def _order(self, line: str) -> None:
        order: dict[str, Any] = json.loads(line) if line else {"finish": True}  # whoever gave orders is gone
        self._phase = order.get("phase", self._phase)
        self._drained |= frozenset(order.get("drained", ()))
        if order.get("finish"):
            self._finish.set()

    def _tell(self) -> None:
        self.tally.on_drained = sum(self._kept_pods[pod] for pod in self._drained)
        print(json.dumps(asdict(self.tally)), flush=True)

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        loop.add_reader(sys.stdin, lambda: self._order(sys.stdin.readline()))
        telling = asyncio.create_task(self._keep_telling())
        # Staggered, so that they do not ask all at the same moment.
        pause = self.plan.kept_interval_s / max(self.plan.kept, 1)
        kept = []
        for number in range(self.plan.kept):
            kept.append(asyncio.create_task(self._keep(number)))
            await asyncio.sleep(pause)
        await self._ask_all()
        await self._finish.wait()
        await asyncio.gather(*kept)
        telling.cancel()
        with suppress(asyncio.CancelledError):
            await telling
        self.tally.final = True
        self._tell()

    async def _keep_telling(self) -> None:
        while True:
            self._tell()
            await asyncio.sleep(TELL_EVERY_S)

    # --- new connections -----------------------------------------------------------------------------------

    async def _ask_all(self) -> None:
        places = asyncio.Semaphore(AT_ONCE)
        interval = self.plan.seconds / max(self.plan.requests, 1)
        started = time.monotonic()
        tasks: set[asyncio.Task[None]] = set()
        for number in range(self.plan.requests):
            await places.acquire()
            target = self.plan.targets[number % len(self.plan.targets)]
            # Which target a large answer comes from must not depend on the number of targets.
            large = number // len(self.plan.targets) % LARGE_EVERY == number % len(self.plan.targets)
            task = asyncio.create_task(self._ask_once(target, large))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            task.add_done_callback(lambda _: places.release())
            await asyncio.sleep(max(0.0, started + number * interval - time.monotonic()))
        await asyncio.gather(*tasks)

    async def _ask_once(self, target: Target, large: bool) -> None:
        phase, drained = self._phase, self._drained
        connection = Connection(target, next(self._ports) if target.kind == "udp" else 0)
        pod = await self._judge(target, lambda: connection.ask(large))
        connection.close()
        self.tally.new += 1
        if pod in drained:
            self._note(target, f"{pod} answered a new connection after it was drained")
            pod = None
        if pod is None:
            self.tally.new_failed += 1
            return
        counted = self.tally.per_phase.setdefault(phase, {})
        counted[pod] = counted.get(pod, 0) + 1
        self.tally.per_target[target.label] = self.tally.per_target.get(target.label, 0) + 1

    # --- kept connections ----------------------------------------------------------------------------------

    async def _keep(self, number: int) -> None:
        """Ask over one connection until the end; it is broken by its first failure."""
        kinds = [each for each in self.plan.targets if each.kind == ("udp" if number % 5 == 4 else "tcp")]
        target = kinds[number // 5 % len(kinds)]
        connection = Connection(target)
        own = None
        last = False
        while not last:
            last = self._finish.is_set()  # once more after the last change
            pod = await self._judge(target, connection.ask)
            self.tally.kept_requests += 1
            if own is None and pod is not None:
                own = pod
                self._kept_pods[pod] += 1
                self.tally.kept_open += 1
            if pod is None or pod != own:
                self.tally.kept_failed += 1
                self.tally.broken += 1
                if own is not None:
                    self.tally.kept_open -= 1
                    self._kept_pods[own] -= 1
                if pod is not None:
                    self._note(target, f"a kept connection changed from {own} to {pod}")
                break
            self.tally.kept_per_pod[pod] = self.tally.kept_per_pod.get(pod, 0) + 1
            with suppress(TimeoutError):
                await asyncio.wait_for(self._finish.wait(), self.plan.kept_interval_s)
        connection.close()

    # --- judging -------------------------------------------------------------------------------------------

    async def _judge(self, target: Target, ask: Callable[[], Awaitable[str]]) -> str | None:
        """The pod that answered in time and correctly, or None."""
        try:
            return await asyncio.wait_for(ask(), TIMEOUT_S)
        except TimeoutError:
            self._note(target, f"no answer within {TIMEOUT_S:g} s")
        except (OSError, EOFError, Wrong, ValueError) as error:
            self._note(target, f"{type(error).__name__}: {error}")
        return None

    def _note(self, target: Target, text: str) -> None:
        if len(self.tally.examples) < MAX_EXAMPLES:
            self.tally.examples.append(f"{target.label}: {text}")


class Connection:
    """A connected socket, so that the kernel takes answers from the VIP only; opened at the first question."""

    def __init__(self, target: Target, source_port: int = 0) -> None:
        self._target, self._source_port = target, source_port
        self._socket: socket.socket | None = None
        self._rest = b""
        self._asked = 0

    async def ask(self, large: bool = False) -> str:
        """The name of the pod that answered. Raises OSError, EOFError or Wrong."""
        loop = asyncio.get_running_loop()
        if self._socket is None:
            kind = socket.SOCK_DGRAM if self._target.kind == "udp" else socket.SOCK_STREAM
            self._socket = socket.socket(self._target.family, kind)
            self._socket.setblocking(False)
            if self._source_port:
                self._socket.bind(("", self._source_port))
            await loop.sock_connect(self._socket, (self._target.address, self._target.port))
            if kind == socket.SOCK_STREAM:
                self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._asked += 1
        if self._target.kind == "udp":
            return await self._ask_udp(self._socket)
        return await self._ask_http(self._socket, large)

    async def _ask_udp(self, opened: socket.socket) -> str:
        loop = asyncio.get_running_loop()
        question = f"question {self._asked}".encode()
        await loop.sock_sendall(opened, question)
        name, _, echoed = (await loop.sock_recv(opened, 65536)).partition(b" ")
        if echoed != question:
            raise Wrong(f"{question!r} came back as {echoed!r}")
        return name.decode()

    async def _ask_http(self, opened: socket.socket, large: bool) -> str:
        loop = asyncio.get_running_loop()
        path = LARGE if large else "/"
        await loop.sock_sendall(opened, f"GET {path} HTTP/1.1\r\nHost: web\r\n\r\n".encode())
        while b"\r\n\r\n" not in self._rest:
            await self._receive(opened)
        head, _, self._rest = self._rest.partition(b"\r\n\r\n")
        status, *lines = head.decode("latin-1").split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines)
        length, name = int(headers["content-length"]), headers["x-pod"]
        while len(self._rest) < length:
            await self._receive(opened)
        body, self._rest = self._rest[:length], self._rest[length:]
        if status.split()[1] != "200" or body != (large_body(name) if large else f"{name}\n".encode()):
            raise Wrong(f"{status}, {len(body)} bytes from {name}")
        return name

    async def _receive(self, opened: socket.socket) -> None:
        data = await asyncio.get_running_loop().sock_recv(opened, 1 << 18)
        if not data:
            raise EOFError("the connection was closed")
        self._rest += data

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()


if __name__ == "__main__":
    asyncio.run(Load(Plan.from_json(sys.argv[1])).run())
