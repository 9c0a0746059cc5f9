"""Direct return end to end: the pod takes the packet out of its tunnel and answers the client as the VIP.

This kernel may have neither GRE nor IPIP, so the pod's end of each tunnel is a thread: raw sockets take the outer
headers off, a TUN device puts what was inside into the pod's own stack. For L3DSR the pod's nftables put the VIP back.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import random
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from pyroute2 import IPRoute

import packets
from kuproxy.demo.topology import Host, Network, remove_stale
from netns.world import CLIENT, PREFIX, Capture, cache_options, connect, listener, plain, read_exactly

pytestmark = pytest.mark.netns

WORDS = ("gre4", "gre6", "ipip4", "ipip6", "gue4", "gue6", "l3dsr")
VIPS = {
    word: (f"10.96.1.{number}", f"fd00:10:96:1::{number}") for number, word in enumerate(WORDS, 1)
}
PORT = 80
POD = plain(1, 2)
NODE = plain(1, 1)
DSCP = 46
MEGABYTE = 1_000_000
_TUNSETIFF, _IFF_TUN_NO_PI = 0x400454CA, 0x1001
OUTER_HEADERS = {"gre": 4, "ipip": 0, "gue": 4}
CASES = [(word, family) for word in WORDS for family in (0, 1)]


class TunnelEnd:
    """Raw sockets in, TUN out. `seen` holds (encapsulation, inner packet)."""

    def __init__(self, host: Host) -> None:
        self.seen: list[tuple[str, bytes]] = []
        self._ending = False
        self._tun = host.call(self._open_tun)
        ip = ["ip", "-n", host.name]
        for words in (
            "link set tun0 up mtu 1500",
            *(f"addr add {ipv4}/32 dev lo" for ipv4, _ in VIPS.values()),
            *(f"addr add {ipv6}/128 dev lo" for _, ipv6 in VIPS.values()),
        ):
            subprocess.run([*ip, *words.split()], check=True, timeout=10)
        for name in ("all", "tun0", "eth0"):
            host.sysctl(f"ipv4/conf/{name}/rp_filter", "0")
        self._threads = []
        for family in (socket.AF_INET, socket.AF_INET6):
            raw = [("gre", 47), ("ipip", 4), ("ipip", 41)]
            for name, protocol in raw:
                opened = host.call(socket.socket, family, socket.SOCK_RAW, protocol)
                self._serve(name, opened, family == socket.AF_INET)
            opened = host.call(socket.socket, family, socket.SOCK_DGRAM)
            if family == socket.AF_INET6:
                opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            opened.bind((POD[family == socket.AF_INET6], 6080))
            self._serve("gue", opened, False)

    @staticmethod
    def _open_tun() -> int:
        tun = os.open("/dev/net/tun", os.O_RDWR)
        fcntl.ioctl(tun, _TUNSETIFF, struct.pack("16sH22x", b"tun0", _IFF_TUN_NO_PI))
        return tun

    def _serve(self, name: str, opened: socket.socket, with_header: bool) -> None:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
        opened.settimeout(0.1)
        thread = threading.Thread(target=self._read, args=(name, opened, with_header), daemon=True)
        thread.start()
        self._threads.append(thread)

    def _read(self, name: str, opened: socket.socket, with_header: bool) -> None:
        with opened:
            while not self._ending:
                try:
                    data = opened.recv(70000)
                except TimeoutError:
                    continue
                if with_header:
                    data = data[(data[0] & 15) * 4 :]
                inner = data[OUTER_HEADERS[name] :]
                self.seen.append((name, inner))
                os.write(self._tun, inner)

    def close(self) -> None:
        self._ending = True
        for thread in self._threads:
            thread.join()
        os.close(self._tun)


def _restore_l3dsr(host: Host) -> None:
    ipv4, ipv6 = VIPS["l3dsr"]
    rules = f"""table inet dsr {{
        chain restore {{
            type filter hook prerouting priority raw
            ip dscp {DSCP} ip daddr {POD[0]} ip daddr set {ipv4}
            ip6 dscp {DSCP} ip6 daddr {POD[1]} ip6 daddr set {ipv6}
        }}
    }}
    """
    subprocess.run(host.command("nft", "-f", "-"), input=rules.encode(), check=True, timeout=10)


def _script() -> str:
    lines = ["ku conf buckets 4096", f"ku conf ip4-src-address {NODE[0]} ip6-src-address {NODE[1]}"]
    for word, pair in VIPS.items():
        for family, vip in enumerate(pair):
            kind = f"l3dsr dscp {DSCP}" if word == "l3dsr" else word
            pod = POD[family] if word == "l3dsr" else POD[word[-1] == "6"]
            lines += [f"ku vip {vip} encap {kind}", f"ku pod {vip} {pod}"]
    return "\n".join([*lines, "ku trace add 100", ""])


class Direct:
    """The network, `ku run` on its node, and the pod's end of the tunnels."""

    def __init__(self, network: Network, directory: Path) -> None:
        self.client, self.node, self.pod = network.client, network.node, network.pods[0]
        self.end = TunnelEnd(self.pod)
        self.report = directory / "report.json"
        self._log = directory / "log"
        script = directory / "direct.ku"
        script.write_text(_script())
        command = ("-m", "kuproxy.daemon.foreground", "--config", str(script), "--report", str(self.report))
        with self._log.open("wb") as log:
            words = (*command, *cache_options())
            self.process = self.node.start(sys.executable, *words, stdout=log, stderr=log)
        self.wait_for(lambda: "forwarding" in self.log, 60)

    @property
    def log(self) -> str:
        return self._log.read_text()

    def wait_for(self, condition, limit_s: float = 5) -> None:  # type: ignore[no-untyped-def]
        deadline = time.monotonic() + limit_s
        while not condition():
            assert self.process.poll() is None and time.monotonic() < deadline, self.log
            time.sleep(0.02)

    def told(self) -> str:
        self.report.unlink(missing_ok=True)
        self.process.send_signal(signal.SIGUSR1)
        self.wait_for(self.report.exists)
        return self.report.read_text()


@contextmanager
def _direct(directory: Path) -> Iterator[Direct]:
    remove_stale(PREFIX)
    with Network(PREFIX, 1) as network:
        # The client's packets of 1500 bytes carry "don't fragment": the way to the pod has room for the outer headers.
        for host, name in ((network.node, "pod1"), (network.pods[0], "eth0")):
            subprocess.run(["ip", "-n", host.name, "link", "set", name, "mtu", "1600"], check=True, timeout=10)
        # And the pod's answers, which take no tunnel, still have to fit the client's 1500.
        for via in NODE:
            route = ["route", "change", "default", "via", via, "dev", "eth0", "mtu", "1500"]
            subprocess.run(["ip", "-n", network.pods[0].name, *(["-6"] * (":" in via)), *route], check=True, timeout=10)
        made = Direct(network, directory)
        try:
            if shutil.which("nft"):
                _restore_l3dsr(made.pod)
            yield made
        finally:
            made.process.terminate()
            made.process.wait(10)
            made.end.close()


@pytest.fixture(scope="module")
def direct(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Direct]:
    with _direct(tmp_path_factory.mktemp("direct")) as made:
        yield made


def _needs(word: str) -> None:
    if word == "l3dsr" and not shutil.which("nft"):
        pytest.skip("netns: no program `nft`")


@pytest.mark.parametrize(("word", "family"), CASES)
def test_tcp_at_full_offload(direct: Direct, word: str, family: int) -> None:
    """A megabyte each way; the pod sees the client, the client sees the VIP: its socket is connected to it."""
    _needs(word)
    data = random.Random(0).randbytes(MEGABYTE)
    peers: list[str] = []

    def serve(opened: socket.socket, peer: str) -> None:
        peers.append(peer)
        taken = read_exactly(opened, MEGABYTE)
        opened.sendall(hashlib.sha256(taken).digest() + taken[::-1])

    with listener(direct.pod, PORT, serve), connect(direct.client, VIPS[word][family], PORT) as opened:
        opened.settimeout(20)
        opened.sendall(data)
        assert read_exactly(opened, 32) == hashlib.sha256(data).digest()
        assert read_exactly(opened, MEGABYTE) == data[::-1]
    assert peers == [CLIENT[family]]


@pytest.mark.parametrize(("word", "family"), CASES)
@pytest.mark.parametrize("length", [1, 1400, 4000])
def test_datagrams_and_fragments(direct: Direct, word: str, family: int, length: int) -> None:
    """The answer comes from the VIP, or the connected socket would not take it."""
    _needs(word)
    data = random.Random(length).randbytes(length)
    vip = VIPS[word][family]
    kind = socket.AF_INET6 if family else socket.AF_INET
    serving = direct.pod.call(socket.socket, kind, socket.SOCK_DGRAM)
    with serving, direct.client.call(socket.socket, kind, socket.SOCK_DGRAM) as asking:
        serving.bind((vip, PORT))
        serving.settimeout(3)
        asking.settimeout(3)
        asking.connect((vip, PORT))
        asking.send(data)
        taken, peer = serving.recvfrom(65536)
        assert (taken, peer[0]) == (data, CLIENT[family])
        serving.sendto(data[::-1], peer)
        assert asking.recv(65536) == data[::-1]


def _mac(host: Host, interface: str) -> bytes:
    def ask(netlink: IPRoute) -> str:
        (link,) = netlink.link("get", ifname=interface)
        return link.get_attr("IFLA_ADDRESS")

    return bytes.fromhex(host.netlink(ask).replace(":", ""))


@pytest.mark.parametrize(("word", "family"), [case for case in CASES if case[0] != "l3dsr"])
def test_the_inner_packet_is_byte_identical(direct: Direct, word: str, family: int, tmp_path: Path) -> None:
    sent = packets.frame(packets.udp(CLIENT[family], VIPS[word][family], 4321, 9, b"unchanged"), ttl=33)
    capture = Capture(direct.pod)
    opened = direct.client.call(socket.socket, socket.AF_PACKET, socket.SOCK_RAW, 0)
    with opened:
        opened.bind(("eth0", 0))
        opened.send(_mac(direct.node, "client0") + _mac(direct.client, "eth0") + sent[12:])
    inner = (word[:-1], sent[14:])
    direct.wait_for(lambda: inner in direct.end.seen)
    frames = [each.frame for each in capture.close() if sent[14:] in each.frame]
    assert len(frames) == 1
    tshark = shutil.which("tshark")
    if tshark is None:
        return
    from kuproxy.drivers.capture import CaptureWriter

    with CaptureWriter(tmp_path / "outer.pcap") as writer:
        writer.write(frames[0], 0)
    command = [tshark, "-r", str(tmp_path / "outer.pcap"), "-T", "fields", "-e", "frame.protocols"]
    command += ["-o", "ip.check_checksum:TRUE", "-o", "udp.check_checksum:TRUE", "-e", "_ws.expert.message"]
    text = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout
    names = ("ip", "ipv6")
    outer = f"eth:ethertype:{names[word[-1] == '6']}:"
    middle = {"gre": "gre:", "ipip": "", "gue": "udp"}[word[:-1]]
    inside = "" if word.startswith("gue") else f"{names[family]}:udp"
    assert text.startswith(outer + middle + inside), text
    assert "hecksum" not in text


def test_no_return_entries_and_a_trace(direct: Direct) -> None:
    """Replies do not come by: nothing was restored, and nothing was dropped."""
    told = json.loads(direct.told())
    assert told["outcomes"]["drop"] == 0, told["nodes"]
    # kp-nat6-in2out may have passed on the links' own multicast reports (MLDv2); it restored nothing.
    assert "IN2OUT" not in {each["reason"] for each in told["nodes"]}
    for vip in told["vips"]:
        assert vip["counters"]["from_pod_packets"] == 0
        assert vip["counters"]["to_pod_bytes"] == sum(pod["counters"]["to_pod_bytes"] for pod in vip["pods"]) > 0
    link = subprocess.run(
        ["ip", "-n", direct.node.name, "-d", "link", "show", "ku0"],
        capture_output=True,
        text=True,
        check=True,
        timeout=10,
    )
    assert "gso_max_segs 1 " in link.stdout
    assert len(told["trace"]) == 100
    ways = [[step["node"] for step in packet["steps"]] for packet in told["trace"]]
    # The first may be such a report.
    assert ["kp-input", "kp-lookup", "kp-balance", "kp-gre"] in ways
