"""The live suite's parts: rules that are kube-proxy's, clients that count what servers saw, times that add up."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from bench import plots
from bench.harness import QUICK, Case, Figure
from bench.live import ends, sockets
from bench.live.bed import missing_programs
from bench.live.cpu import Moment, spent
from bench.live.nftables import ruleset
from bench.live.services import Rule, ku_lines, others
from bench.suites import live
from kuproxy.dataplane._jit import COMPILED
from kuproxy.demo.topology import Network
from kuproxy.vppcli.apply import Desired

ROOT = Path(__file__).resolve().parent.parent.parent
DUMP = ROOT / "tests/fixtures/kubernetes-1.36/kube-proxy/kube-proxy-nftables.txt"
calls_libc = pytest.mark.skipif(not COMPILED, reason="the C library is called from compiled code alone")
RULES = [Rule("10.96.0.80", "tcp", 80, ["10.244.1.2"], 8080), *others(20)]


def chains(text: str) -> dict[str, list[str]]:
    """Rules by chain of a table as nft lists it, without comments."""
    found: dict[str, list[str]] = {}
    for name, body in re.findall(r'chain "?([^"\s]+)"? \{\s*(.*?)\n\s*\}\n', text, re.DOTALL):
        lines = (re.sub(r'\s*comment ".*?"', "", line).strip() for line in body.splitlines())
        found[name] = [line for line in lines if line]
    return found


def normal(rules: list[str]) -> list[str]:
    """The ranges of cluster IPs are the cluster's own."""
    return [re.sub(r"ip daddr (\{ .* \}|[\d./]+) drop", "ip daddr … drop", line) for line in rules]


@pytest.mark.netns
def test_the_rules_are_those_of_kube_proxy() -> None:
    if "nft" in missing_programs():
        pytest.skip("no program `nft`")
    with Network("kutestnft", 0) as network:
        write = network.node.start("nft", "-f", "-", stdin=subprocess.PIPE, text=True)
        write.communicate(ruleset(RULES))
        assert write.returncode == 0
        listed, _ = network.node.start("nft", "list", "ruleset", stdout=subprocess.PIPE, text=True).communicate()
    ours, theirs = chains(listed), chains(DUMP.read_text().partition("table ip6")[0])
    of_services = re.compile(r"(service|external|endpoint|firewall|local)-[A-Z0-9]{8}-")
    general = [name for name in theirs if not of_services.match(name)]
    assert len(general) > 12
    for name in general:
        if name != "reject-chain":  # only services without endpoints lead there
            assert normal(ours[name]) == normal(theirs[name]), name
    assert ours["service-0"] == ["meta l4proto tcp dnat ip to numgen random mod 1 map { 0 : 10.244.1.2 . 8080 }"]
    shape = re.sub(r"10[\d.]+ \. 8080", "POD", ours["service-1"][0])
    assert shape == "meta l4proto tcp dnat ip to numgen random mod 3 map { 0 : POD, 1 : POD, 2 : POD }"
    assert shape == re.sub(r"10[\d.]+ \. 8080", "POD", theirs["service-OKDOEQWT-edge/nodeport/tcp/http"][0])


def test_others_are_the_same_services_for_both() -> None:
    desired = Desired()
    for line in "".join(map(ku_lines, RULES)).splitlines():
        desired.run(line)
    vips = {str(vip.key.prefix.network_address): vip for vip in desired.config().vips}
    assert len(vips) == len(RULES)
    for rule in RULES:
        vip = vips[rule.address]
        assert (vip.key.port, vip.target_port) == (rule.port, rule.target_port)
        assert {str(pod.address) for pod in vip.pods} == set(rule.pods)


class Server:
    """HTTP on loopback, one answer a connection or many; counts requests and connections."""

    def __init__(self) -> None:
        self.requests = self.connections = 0
        self.listening = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port = self.listening.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                opened, _ = self.listening.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._serve, args=(opened,), daemon=True).start()

    def _serve(self, opened: socket.socket) -> None:
        with opened, suppress(ConnectionError):  # the client ends in the middle, when its time is over
            while request := opened.recv(4096):
                assert request.startswith(b"GET / HTTP/1.1\r\nHost: ") and request.endswith(b"\r\n\r\n")
                self.requests += 1
                opened.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                if b"Connection: close" in request:
                    return


@calls_libc
def test_connect_close_counts_connections() -> None:
    server = Server()
    with server.listening:
        answer = ends._close("127.0.0.1", server.port, 0.3, 4)
    assert answer["failures"] == 0 and 0.3 <= answer["seconds"] < 5
    # Those under way at the end are not counted.
    assert 0 < answer["requests"] <= server.requests <= answer["requests"] + 4


@calls_libc
def test_nobody_listens_is_a_failure_and_ends() -> None:
    with socket.create_server(("127.0.0.1", 0)) as opened:
        port = opened.getsockname()[1]
    answer = ends._close("127.0.0.1", port, 5.0, 2)
    assert answer["requests"] == 0 and answer["failures"] >= 1000 and answer["seconds"] < 5


@calls_libc
def test_keep_alive_measures_every_request_over_few_connections() -> None:
    server = Server()
    with server.listening:
        answer = ends._keep("127.0.0.1", server.port, 0.3, 3)
    assert answer["failures"] == 0 and server.connections == 3
    assert 0 < answer["requests"] <= server.requests <= answer["requests"] + 4  # one to learn the answer's size
    assert 0 < answer["p50"] <= answer["p99"] <= answer["p999"]


@calls_libc
def test_what_warms_up_is_not_counted_and_goes_over_the_same_sockets() -> None:
    server = Server()
    with server.listening:
        at: list[int] = []
        answer = ends._keep("127.0.0.1", server.port, 0.2, 3, 0.3, lambda: at.append(server.requests))
    assert answer["failures"] == 0 and server.connections == 3
    assert 10 < at[0] < server.requests
    assert 0 < answer["requests"] <= server.requests - at[0] <= answer["requests"] + 3
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sink:
        sink.bind(("127.0.0.1", 0))
        came: list[set[tuple[str, int]]] = []

        def take() -> None:
            sink.setblocking(False)
            came.append(set())
            with suppress(BlockingIOError):
                while True:
                    came[-1].add(sink.recvfrom(100)[1])

        answer = ends._udp("127.0.0.1", sink.getsockname()[1], 0.2, 2, 2000, 0.2, take)
        take()
    assert came[0] == came[1] and len(came[0]) == 2
    assert answer["sent"] == pytest.approx(2000 * answer["seconds"], rel=0.2)


@calls_libc
@pytest.mark.parametrize("rate", [0, 5000])
def test_datagrams_are_sent_at_the_rate_and_counted_by_the_sink(rate: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", ends.__name__, "sink", str(port)]
    sink = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert sink.stdin is not None and sink.stdout is not None
    try:
        assert json.loads(sink.stdout.readline()) == {"ready": True}
        answer = ends._udp("127.0.0.1", port, 0.4, 8, rate)
        time.sleep(0.2)
        print(json.dumps({}), file=sink.stdin, flush=True)
        received = json.loads(sink.stdout.readline())["received"]
    finally:
        sink.kill()
        sink.communicate()
    assert 0 < received <= answer["sent"]
    if rate:
        assert received == answer["sent"]
        assert answer["sent"] == pytest.approx(rate * answer["seconds"], rel=0.1)


def test_a_datagram_makes_a_frame_of_64_bytes() -> None:
    messages, (data, vectors) = sockets.datagrams(3, ends.DATAGRAM)
    assert 14 + 20 + 8 + ends.DATAGRAM == 64
    assert len(messages) == 3 * sockets.MESSAGE_BYTES
    assert (vectors[:, 1] == ends.DATAGRAM).all() and np.diff(vectors[:, 0].astype(np.int64)).tolist() == [22, 22]
    assert int(vectors[0, 0]) == data.ctypes.data


def test_time_of_others_is_not_ours() -> None:
    burn = "import time; end = time.process_time() + 0.5\nwhile time.process_time() < end: pass\ninput()"
    burners = [subprocess.Popen([sys.executable, "-c", burn], stdin=subprocess.PIPE) for _ in range(2)]
    try:
        before = Moment.now()
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            after = Moment.now()
            if all(after.processes[each.pid] - before.processes.get(each.pid, 0) >= 0.4 for each in burners):
                break
            time.sleep(0.05)
        first, second = (each.pid for each in burners)
        total, by_process = spent(before, after, {first, os.getpid()})
        everything, _ = spent(before, after, {first, second, os.getpid()})
        assert by_process[first] >= 0.4 and second not in by_process
        assert everything - total >= 0.39
    finally:
        for each in burners:
            each.communicate(b"\n")


class Fixed(live.LiveCase):
    """A case whose rounds are known."""

    def __init__(self, name: str, samples: list[dict[str, float]], base: live.LiveCase | None) -> None:
        super().__init__(live.LOADS[0], live.Peer(name, "nftables"), (1.0, 0.0), live.Beds(), base)
        self.samples = samples


def test_ratios_are_taken_round_by_round() -> None:
    def samples(*rounds: tuple[float, float]) -> list[dict[str, float]]:
        return [{"rate": rate, "CPU": cpu} for rate, cpu in rounds]

    base = Fixed("nftables", samples((100, 10), (50, 0), (80, 8)), None)
    other = Fixed("kuproxy", samples((110, 20), (100, 9), (40, 12)), base)
    assert all("ratio" not in figure.metric for figure in base.figures())
    ratios = {figure.metric: figure for figure in other.figures() if "ratio" in figure.metric}
    assert (ratios["rate, ratio"].min, ratios["rate, ratio"].median) == (0.5, 1.1)
    assert ratios["CPU, ratio"].rounds == 2, "a round that measured nothing says nothing"


def test_peers_of_a_load_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live.os, "geteuid", lambda: 0)
    monkeypatch.setattr(live, "missing_programs", list)
    names = [case.name for case in live.cases(QUICK)]
    peers = ["nftables", "kuproxy", "cache", "cache-neighbour", "cache-peer"]
    assert names[:5] == [f"veth-udp64-1service-{peer}" for peer in peers]
    assert [name.endswith("nftables") for name in names] == [True, *[False] * 4] * (len(names) // 5)


def test_without_root_the_suite_is_left_out_aloud(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(live.os, "geteuid", lambda: 1000)
    assert live.cases(QUICK) == []
    assert "suite live is left out: it needs root" in capsys.readouterr().err


def test_beds_are_closed_when_a_case_fails() -> None:
    from bench.harness import measure

    class Failing(Case):
        finished = False

        def sample(self) -> dict[str, float]:
            raise RuntimeError("no")

        def finish(self) -> None:
            self.finished = True

    case = Failing("x")
    with pytest.raises(RuntimeError):
        measure([case], QUICK)
    assert case.finished


def test_plots_leave_out_what_all_names_share(tmp_path: Path) -> None:
    figures = [
        Figure(f"veth-{load}-1service-{peer}", "rate", "kpps", 1, value, 3, 3)
        for load, peer, value in (("udp64", "nftables", 100.0), ("udp64", "kuproxy", 130.0))
    ]
    (tmp_path / "live-old.svg").write_text("")
    (written,) = plots.write_plots(tmp_path, "live", figures)
    assert written.name == "live-rate-kpps.svg" and not (tmp_path / "live-old.svg").exists()
    text = written.read_text()
    assert ">nftables<" in text and ">kuproxy<" in text and "130 kpps" in text
