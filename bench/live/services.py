"""Services that nobody asks, which every data plane has to hold all the same."""

from collections.abc import Iterator, Sequence
from ipaddress import IPv4Address
from typing import NamedTuple

PODS_EACH = 3


class Rule(NamedTuple):
    """One port of a service; `protocol` is tcp or udp."""

    address: str
    protocol: str
    port: int
    pods: Sequence[str]
    target_port: int


def others(count: int) -> Iterator[Rule]:
    """`count` services with one port each."""
    for number in range(count):
        pods = [str(IPv4Address("10.245.0.1") + number * PODS_EACH + n) for n in range(PODS_EACH)]
        yield Rule(str(IPv4Address("10.97.0.1") + number), "tcp", 80, pods, 8080)


def ku_lines(rule: Rule) -> str:
    """The same for `ku`."""
    prefix = f"{rule.address}/32 protocol {rule.protocol} port {rule.port}"
    return f"ku vip {prefix} target_port {rule.target_port} nat4\nku pod {prefix} {' '.join(rule.pods)}\n"
