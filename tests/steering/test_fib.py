"""The routes that shortcuts rely on beside what the kernel itself says of them, in a namespace of its own."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from ipaddress import ip_address, ip_network
from random import Random

import pytest

from kuproxy.demo.topology import Host, remove_stale
from kuproxy.steering.fib import Fib, Hop, NoHop

pytestmark = pytest.mark.netns

PREFIX = "kufib"
LINKS = ("one", "two", "three")


@pytest.fixture
def node() -> Iterator[Host]:
    """With three links that are up, each with an address of either family."""
    remove_stale(PREFIX)
    host = Host(f"{PREFIX}1-{os.getpid()}")
    try:
        for number, name in enumerate(LINKS, 1):
            ip(host, "link", "add", name, "type", "veth", "peer", f"{name}x")
            for each in (name, f"{name}x"):
                ip(host, "link", "set", each, "up")
            ip(host, "addr", "add", f"10.0.{number}.1/24", "dev", name)
            ip(host, "addr", "add", f"fd00:{number}::1/64", "dev", name, "nodad")
        yield host
    finally:
        host.close()


def ip(host: Host, *words: str) -> str:
    done = subprocess.run(["ip", "-n", host.name, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, (words, done.stderr)
    return done.stdout


def fibs(host: Host) -> dict[int, Fib]:
    return host.call(lambda: {family: Fib(family) for family in (4, 6)})


def kernel(host: Host, address: str) -> tuple[str, str] | None:
    """(interface, gateway) as `ip route get` has it; None: it does not go on from here."""
    words = ["ip", "-n", host.name, "route", "get", address]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    first = done.stdout.split("\n")[0]
    if done.returncode or re.match(r"(local|broadcast|blackhole|unreachable|prohibit|multicast)\b", first):
        return None
    found = re.search(r"(?: via (\S+))? dev (\S+)", first)
    assert found is not None, first
    return found[2], found[1] or ""


def ours(host: Host, known: dict[int, Fib], address: str) -> tuple[str, str] | None:
    hop = known[ip_address(address).version].hop(ip_address(address).packed)
    if isinstance(hop, NoHop):
        return None
    lines = [line.split(": ") for line in ip(host, "-o", "link").splitlines()]
    names = {int(line[0]): line[1].split("@")[0] for line in lines}
    return names[hop.ifindex], str(ip_address(hop.gateway)) if hop.gateway else ""


def test_says_what_the_kernel_says(node: Host) -> None:
    """Prefixes of all lengths within each other, with gateways, without, and some that lead nowhere."""
    rng = Random(7)
    asked: list[str] = ["192.0.2.1", "2001:db8::1", "10.0.1.1", "10.0.1.255", "10.0.2.9", "fd00:2::9", "fd00:2::1"]
    ip(node, "route", "add", "default", "via", "10.0.1.9")
    ip(node, "-6", "route", "add", "default", "via", "fd00:1::9")
    for base, lengths in (("172.16.0.0", range(12, 33)), ("2001:db8::", range(32, 129, 4))):
        version = ip_address(base).version
        for number, length in enumerate(lengths):
            address = ip_address(int(ip_address(base)) | rng.getrandbits((20, 96)[version == 6]))
            network = ip_network(f"{address}/{length}", strict=False)
            link = rng.randrange(len(LINKS))
            gateway = f"10.0.{link + 1}.{9 + number}" if version == 4 else f"fd00:{link + 1}::{9 + number:x}"
            words = [str(network), *(["via", gateway] if number % 3 else []), "dev", LINKS[link]]
            if number % 7 == 6:
                words = ["unreachable", str(network)]
            ip(node, f"-{version}", "route", "replace", *words)
            top = int(network.network_address) | int(network.hostmask)
            asked += [str(network.network_address), str(ip_address(top)), str(address)]
            asked.append(str(ip_address(int(ip_address(base)) | rng.getrandbits((20, 96)[version == 6]))))
    known = fibs(node)
    told = {each: kernel(node, each) for each in asked}
    assert {each: ours(node, known, each) for each in asked} == told
    assert sum(each is None for each in told.values()) > 5 and len(set(told.values())) > 20


def why(known: dict[int, Fib], address: str) -> str:
    hop = known[ip_address(address).version].hop(ip_address(address).packed)
    return hop.why if isinstance(hop, NoHop) else ""


@pytest.mark.parametrize(
    ("command", "address", "expected"),
    [
        ("rule add fwmark 1 lookup main", "10.0.1.2", "policy routing"),
        ("-6 rule add from fd00::/16 lookup main", "fd00:1::2", "policy routing"),
        ("rule del pref 32767", "10.0.1.2", ""),
        ("route add 10.9.0.0/16 nexthop via 10.0.1.2 nexthop via 10.0.2.2", "10.9.1.1", "several next hops"),
        ("-6 route add fd09::/16 nexthop via fd00:1::2 nexthop via fd00:2::2", "fd09::1", "several next hops"),
        ("route add 10.9.0.0/16 tos 0x10 via 10.0.1.2", "10.9.1.1", "routes by source or type of service"),
        ("route add blackhole 10.9.0.0/16", "10.9.1.1", "not forwarded"),
        ("route add throw 10.9.0.0/16", "10.9.1.1", "not forwarded"),
        ("route add 10.8.0.0/16 via 10.0.1.2", "10.9.1.1", "no route"),
    ],
)
def test_says_what_is_not_simple(node: Host, command: str, address: str, expected: str) -> None:
    ip(node, *command.split())
    assert why(fibs(node), address) == expected


def test_routes_by_type_of_service_count_whatever_comes_after_them(node: Host) -> None:
    for words in (["tos", "0x10", "via", "10.0.1.2"], ["via", "10.0.2.2"]):
        ip(node, "route", "add", "10.9.0.0/16", *words)
    assert why(fibs(node), "10.9.1.1") == "routes by source or type of service"


def test_the_lowest_metric_counts_and_a_route_may_have_an_mtu(node: Host) -> None:
    ip(node, "route", "add", "10.9.0.0/16", "via", "10.0.1.2", "metric", "20")
    ip(node, "route", "add", "10.9.0.0/16", "via", "10.0.2.2", "metric", "10", "mtu", "1280")
    ip(node, "route", "add", "10.9.0.0/16", "via", "10.0.3.2", "metric", "30")
    hop = fibs(node)[4].hop(ip_address("10.9.1.1").packed)
    assert isinstance(hop, Hop)
    assert (hop.gateway, hop.mtu) == (ip_address("10.0.2.2").packed, 1280)


def _down(node: Host) -> None:
    ip(node, "link", "set", "onex", "down")


def _gone(node: Host) -> None:
    ip(node, "link", "del", "one")


@pytest.mark.parametrize(("change", "expected"), [(_down, "the route's link is down"), (_gone, "no route")])
def test_a_link_without_carrier(node: Host, change: Callable[[Host], None], expected: str) -> None:
    """The kernel notes a carrier that is lost within a second (net/core/link_watch.c)."""
    change(node)
    deadline = time.monotonic() + 10
    while why(fibs(node), "10.0.1.7") != expected:
        assert time.monotonic() < deadline
        time.sleep(0.05)
