"""What shortcuts depend on, in a namespace of its own: it is seen, its changes are heard of, and noise is not."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest

from kuproxy.demo.topology import Host, remove_stale
from kuproxy.steering.filters import filters
from kuproxy.steering.surroundings import Surroundings

pytestmark = pytest.mark.netns

PREFIX = "kuaround"
MAC = "02:00:00:00:00:09"


@pytest.fixture
def pair() -> Iterator[tuple[Host, Host]]:
    """A node with a veth `pod` whose other end is in another namespace, and one of which both ends are here."""
    remove_stale(PREFIX)
    node, pod = Host(f"{PREFIX}1-{os.getpid()}"), Host(f"{PREFIX}2-{os.getpid()}")
    try:
        run(node, "ip", "link", "add", "pod", "type", "veth", "peer", "eth0", "netns", pod.name)
        run(node, "ip", "link", "add", "here", "type", "veth", "peer", "herex")
        for host, name in ((node, "pod"), (node, "here"), (node, "herex"), (pod, "eth0")):
            run(host, "ip", "link", "set", name, "up")
        run(node, "ip", "addr", "add", "10.0.0.1/24", "dev", "pod")
        run(node, "ip", "neigh", "add", "10.0.0.9", "dev", "pod", "lladdr", MAC, "nud", "permanent")
        yield node, pod
    finally:
        node.close()
        pod.close()


def run(host: Host, *words: str, text: str = "") -> str:
    done = subprocess.run(
        ["ip", "netns", "exec", host.name, *words], capture_output=True, text=True, input=text, check=False
    )
    assert done.returncode == 0, (words, done.stderr)
    return done.stdout


def test_what_there_is(pair: tuple[Host, Host]) -> None:
    node, _ = pair
    run(node, "tc", "qdisc", "add", "dev", "here", "root", "pfifo")
    around = node.call(Surroundings)
    try:
        links = {each.name: (index, each) for index, each in around.links.items()}
        index, pod = links["pod"]
        assert (pod.kind, pod.mtu) == ("veth", 1500)
        assert pod.ethernet and pod.up and pod.arp and pod.elsewhere
        assert run(node, "cat", "/sys/class/net/pod/address").strip() == pod.mac.hex(":")
        assert not links["here"][1].elsewhere
        assert links["lo"][1].ethernet is False
        assert around.neighbours[index, ip_address("10.0.0.9").packed] == bytes.fromhex(MAC.replace(":", ""))
        assert around.queued == {links["here"][0]}
        assert node.call(around.programs, index) == 0
        assert around.filters == ()
    finally:
        around.close()


def settle(node: Host, around: Surroundings) -> None:
    """Until the new links have said everything: IPv6 goes on for a moment by itself."""
    quiet_since, deadline = time.monotonic(), time.monotonic() + 5
    while time.monotonic() < quiet_since + 0.2:
        assert time.monotonic() < deadline, "the kernel does not come to rest"
        if node.call(around.poll):
            quiet_since = time.monotonic()
        time.sleep(0.02)


@pytest.mark.parametrize(
    "command",
    [
        "ip link set pod mtu 1400",
        "ip link set pod down",
        "ip link set pod name renamed",
        "ip link del here",
        "ip neigh replace 10.0.0.9 dev pod lladdr 02:00:00:00:00:08 nud permanent",
        "ip neigh del 10.0.0.9 dev pod",
        "ip neigh add 10.0.0.8 dev pod lladdr 02:00:00:00:00:08 nud reachable",
        "ip route add 10.9.0.0/16 via 10.0.0.9",
        "ip -6 route add fd09::/16 dev pod",
        "ip rule add fwmark 1 lookup main",
        "ip -6 rule add fwmark 1 lookup main",
        "tc qdisc add dev pod root pfifo",
        "nft add table ip theirs",
    ],
)
def test_a_change_is_heard_of_once(pair: tuple[Host, Host], command: str) -> None:
    node, _ = pair
    around = node.call(Surroundings)
    try:
        settle(node, around)
        run(node, *command.split())
        assert node.call(around.poll)
        node.call(around.read)
        settle(node, around)
    finally:
        around.close()


@pytest.mark.parametrize(
    "command",
    [
        "ip neigh replace 10.0.0.9 dev pod lladdr 02:00:00:00:00:09 nud stale",  # the same address as before
        "ip neigh add 10.0.0.8 dev here lladdr 02:00:00:00:00:08 nud permanent",  # no pod can be there
        "ip link set pod promisc on",
    ],
)
def test_what_makes_no_difference_is_not(pair: tuple[Host, Host], command: str) -> None:
    node, _ = pair
    around = node.call(Surroundings)
    try:
        settle(node, around)
        run(node, *command.split())
        assert not node.call(around.poll)
    finally:
        around.close()


@pytest.mark.parametrize(
    ("chain", "found"),
    [
        ("ip t { chain c { type filter hook forward priority 0; }; }", True),
        ("ip6 t { chain c { type filter hook prerouting priority 0; }; }", True),
        ("inet t { chain c { type filter hook postrouting priority 0; }; }", True),
        ("ip t { chain c { type nat hook postrouting priority 100; }; }", True),
        ("netdev t { chain c { type filter hook ingress device pod priority 0; }; }", True),
        ("inet t { chain c { type filter hook input priority 0; }; }", False),
        ("inet t { chain c { type filter hook output priority 0; }; }", False),
        ("inet t { chain c { }; }", False),
        ("inet t { }", False),
    ],
)
def test_chains_that_forwarded_packets_meet(pair: tuple[Host, Host], chain: str, found: bool) -> None:
    node, _ = pair
    run(node, "nft", "-f", "-", text=f"table {chain}\n")
    assert node.call(filters) == (["netfilter (nftables)"] if found else [])


def test_what_proc_names(tmp_path: Path) -> None:
    """iptables names its tables there, IPVS its services behind three lines of headings."""
    (tmp_path / "ip_tables_names").write_text("")
    (tmp_path / "ip_vs").write_text("IP Virtual Server\nProt Local\n  -> Remote\n")
    assert filters(tmp_path) == []
    (tmp_path / "ip6_tables_names").write_text("mangle\n")
    assert filters(tmp_path) == ["netfilter (iptables)"]
    (tmp_path / "ip_vs").write_text("IP Virtual Server\nProt Local\n  -> Remote\nTCP 0A000001:0050 rr\n")
    assert filters(tmp_path) == ["netfilter (iptables)", "IPVS"]
