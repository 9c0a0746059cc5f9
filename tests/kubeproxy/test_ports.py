"""Ports 10256 and those of health-checked services: the answers of a real kube-proxy, but for times, to the byte."""

from __future__ import annotations

import asyncio
import re
import socket
import time
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from kuproxy.daemon.kubernetes import HealthCheck
from kuproxy.kubeproxy.config import Endpoint
from kuproxy.kubeproxy.health import FAMILIES, ProxyHealth, rfc3339
from kuproxy.kubeproxy.listen import Answer, Ports, Question, bind
from kuproxy.kubeproxy.service_health import ServiceHealth

FIXTURES = Path(__file__).parents[1] / "fixtures/kubernetes-1.36/kube-proxy"
S = 10**9
TIME = re.compile(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?Z")


class Clock:
    def __init__(self) -> None:
        self.now = 1_800_000_000 * S + 123_456_789

    def __call__(self) -> int:
        return self.now


def recorded(name: str) -> bytes:
    """A recorded answer, without what differs from moment to moment."""
    return timeless((FIXTURES / f"{name}.http").read_bytes().replace(b"\n", b"\r\n", _header_lines(name)))


def _header_lines(name: str) -> int:
    return (FIXTURES / f"{name}.http").read_bytes().partition(b"\n\n")[0].count(b"\n") + 2


def timeless(answer: bytes) -> bytes:
    answer = re.sub(rb"Date: [^\r]*", b"Date: -", answer)
    answer = re.sub(rb"Content-Length: \d+", b"Content-Length: -", answer)
    return TIME.sub(b"-", answer)


async def ask(port: int, path: str = "/healthz", address: str = "127.0.0.1", method: str = "GET") -> bytes:
    reader, writer = await asyncio.open_connection(address, port)
    writer.write(f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    answer = await asyncio.wait_for(reader.read(), 5)
    writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    assert re.search(rb"Date: \w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT", head)
    if method != "HEAD":
        assert f"Content-Length: {len(body)}".encode() in head
    return answer.replace(b"Connection: close\r\n", b"")


def served(health: ProxyHealth, then: Callable[[int], Awaitable[None]]) -> None:
    async def run() -> None:
        async def handler(question: Question) -> Answer:
            return health.answer(question.path)

        ports = Ports(handler)
        opened = bind(Endpoint("0.0.0.0", 0))
        await ports.open(opened)
        try:
            await then(opened.getsockname()[1])
        finally:
            ports.stop()

    asyncio.run(run())


@pytest.mark.parametrize("path", ["/healthz", "/livez"])
def test_answers_are_upstreams_to_the_byte(path: str) -> None:
    health = ProxyHealth(60)
    for family in FAMILIES:
        health.queued(family)
        health.updated(family)

    async def look(port: int) -> None:
        name = path.removeprefix("/")
        assert timeless(await ask(port, path)) == recorded(name)
        assert timeless(await ask(port, path, "::1")) == recorded(name), "0.0.0.0 is both families, as in Go"
        health.node_eligible = False
        assert timeless(await ask(port, path)) == recorded(f"{name}.node-leaving")
        assert (await ask(port, "/other")).startswith(b"HTTP/1.1 404 Not Found\r\n")
        assert (await ask(port, path, method="HEAD")).endswith(b"\r\n\r\n")

    served(health, look)
    assert health.answered[path, 200] == (2 if path == "/healthz" else 4)


def test_times_as_go_prints_them() -> None:
    assert rfc3339(1_800_000_000 * S) == "2027-01-15T08:00:00Z"
    assert rfc3339(1_800_000_000 * S + 95_894_900) == "2027-01-15T08:00:00.0958949Z"
    assert rfc3339(1_800_000_000 * S + 1) == "2027-01-15T08:00:00.000000001Z"


def _bodies(health: ProxyHealth) -> tuple[int, int, str]:
    """Status of both paths, and lastUpdated."""
    first, second = health.answer("/healthz"), health.answer("/livez")
    found = re.search(rb'"lastUpdated":"([^"]*)"', first.body)
    assert found is not None
    return first.status, second.status, found[1].decode()


def test_a_change_that_waits_too_long_is_a_sick_proxy() -> None:
    clock = Clock()
    health = ProxyHealth(60, clock)
    assert _bodies(health)[:2] == (200, 200), "it is starting"
    health.queued("IPv4")
    clock.now += 100 * S
    assert _bodies(health)[:2] == (200, 200), "it is starting still"
    for family in FAMILIES:
        health.updated(family)
    synced = clock.now
    clock.now += 1000 * S
    assert _bodies(health) == (200, 200, rfc3339(clock.now)), "nothing waits"
    health.queued("IPv6")
    clock.now += 59 * S
    health.queued("IPv6")
    assert _bodies(health)[:2] == (200, 200)
    clock.now += 1 * S
    assert _bodies(health) == (503, 503, rfc3339(synced)), "the first change waits for 60 s"
    assert b'"IPv4":{"lastUpdated":' in health.answer("/livez").body
    assert b'"healthy":false,"status"' in health.answer("/livez").body
    assert health.is_healthy("IPv4")
    assert not health.is_healthy("IPv6")
    health.updated("IPv6")
    assert _bodies(health)[:2] == (200, 200)
    health.node_eligible = False
    assert _bodies(health) == (503, 200, rfc3339(clock.now))


# ------------------------------------------------------------------------------------------ health-checked services


def check(name: str, port: int, endpoints: int = 1) -> HealthCheck:
    return HealthCheck("edge", name, port, endpoints)


def free_ports(count: int) -> list[int]:
    with_ports = [
        socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) for _ in range(count)
    ]
    numbers = [each.getsockname()[1] for each in with_ports]
    for each in with_ports:
        each.close()
    return numbers


def run_services(then: Callable[[ServiceHealth], Awaitable[None]], is_healthy: Callable[[], bool]) -> None:
    async def run() -> None:
        services = ServiceHealth(is_healthy)
        try:
            await then(services)
        finally:
            services.stop()

    asyncio.run(run())


def test_ports_follow_the_services_and_answer_as_upstream() -> None:
    one, two = free_ports(2)
    well = True

    async def look(services: ServiceHealth) -> None:
        nonlocal well
        none_here = check("lb-local-none-here", two, 0)
        assert await services.sync([check("lb-local", one), none_here]) == []
        for address in ("127.0.0.1", "::1"):
            answer = timeless(await ask(one, "/whatever", address))
            assert answer == recorded("healthcheck-node-port.with-local-endpoints")
            assert timeless(await ask(two, "/", address)) == recorded(
                "healthcheck-node-port.no-local-endpoints"
            )
        assert await services.sync([check("lb-local", one, 3)]) == []
        assert b"X-Load-Balancing-Endpoint-Weight: 3\r\n" in await ask(one)
        with pytest.raises(OSError):
            await ask(two)
        well = False
        answer = await ask(one)
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b'"serviceProxyHealthy": false' in answer
        well = True
        assert await services.sync([check("other", one, 0)]) == []
        assert b'"name": "other"' in await ask(one)
        assert await services.sync([]) == []
        with pytest.raises(OSError):
            await ask(one)

    run_services(look, lambda: well)


def test_a_port_that_is_taken_is_told_and_tried_again() -> None:
    (number,) = free_ports(1)

    async def look(services: ServiceHealth) -> None:
        wanted = [check("lb", number)]
        with closing(socket.create_server(("127.0.0.1", number))):
            [(failed, error)] = await services.sync(wanted)
            assert failed == wanted[0]
            assert "in use" in str(error)
        assert await services.sync(wanted) == []
        assert (await ask(number)).startswith(b"HTTP/1.1 200 OK")

    run_services(look, lambda: True)


def test_ports_are_open_only_at_the_addresses_for_node_ports() -> None:
    (number,) = free_ports(1)

    async def look(services: ServiceHealth) -> None:
        wanted = [check("lb", number)]
        assert await services.sync(wanted, ["127.0.0.2", "127.0.0.3"]) == []
        assert (await ask(number, address="127.0.0.3")).startswith(b"HTTP/1.1 200")
        with pytest.raises(OSError):
            await ask(number, address="127.0.0.1")
        assert await services.sync(wanted, ["127.0.0.1"]) == []
        assert (await ask(number, address="127.0.0.1")).startswith(b"HTTP/1.1 200")
        with pytest.raises(OSError):
            await ask(number, address="127.0.0.3")

    run_services(look, lambda: True)


def test_hundreds_of_ports_cost_their_sockets_alone() -> None:
    numbers = free_ports(300)

    async def look(services: ServiceHealth) -> None:
        wanted = [check(f"lb{each}", each) for each in numbers]
        began = time.monotonic()
        assert await services.sync(wanted) == []
        assert time.monotonic() - began < 2
        answers: list[Any] = await asyncio.gather(*map(ask, numbers))
        assert all(each.startswith(b"HTTP/1.1 200") for each in answers)
        before = time.process_time()
        await asyncio.sleep(0.5)
        assert time.process_time() - before < 0.05, "an idle port costs nothing"

    run_services(look, lambda: True)
