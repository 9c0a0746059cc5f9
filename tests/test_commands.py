"""Every `ku` command on the pages of docs/ is run here as it stands, in its order, in an empty directory.

Pages whose commands need a network are run on the node of one (client – node – pod, as docs/howto-bare-metal.md draws
it).  What cannot be run is listed with its reason.
"""

from __future__ import annotations

import csv
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from xml.etree import ElementTree

import pytest

from documents import DOCS, blocks, commands, run_python
from kuproxy.client import Client

# Page → its commands that no test runs here, and why.
NOT_RUN = {
    "announcing.md": {
        "announce bgp --settings /etc/kuproxy/kuproxy.toml": "goes on, with a router: tests/netns/test_ecmp.py",
        "announce layer2": "goes on, on a link: tests/netns/test_layer2.py",
        "announce show": "to a daemon with [announce]: tests/netns/test_ecmp.py",
        "announce drain": "the same",
        "announce undrain": "the same",
    },
    "drivers.md": {
        "run --config services.yaml --driver af_xdp --xdp-mode native": "tests/netns/test_af_xdp.py, with traffic",
    },
    "kubernetes.md": {
        "kube-proxy --config /var/lib/kube-proxy/config.conf --hostname-override node-1": (
            "needs a cluster: tests/netns/test_kube_proxy.py runs these flags against an API server"
        ),
        "kube-proxy --kubeconfig '~/.kube/config' --cluster-cidr 10.244.0.0/16 --proxy-mode nftables": (
            "needs a cluster: tests/netns/test_kube_proxy.py and tests/kubeproxy/test_command.py"
        ),
        "kube-proxy --config config.conf --check": "config.conf is the reader's; run from docs/from-kube-proxy.md",
    },
    "floods.md": {
        "conf flow-hash keyed": "to a daemon: tests/daemon/test_api.py and tests/netns/test_hot_restart.py",
        "conf flow-hash 00112233445566778899aabbccddeeff": "the same",
        "conf reply-path any": "to a daemon: tests/daemon/test_api.py and tests/netns/test_forged_replies.py",
        "show ku": "to a daemon: tests/netns/test_forged_replies.py",
    },
    "from-kube-proxy.md": {
        "show vips": "to the kube-proxy of a cluster's node: tests/netns/test_kube_proxy.py",
        "show node counters": "to the kube-proxy of a cluster's node: tests/netns/test_kube_proxy.py",
    },
}
ON_A_NODE = {"quick-start.md", "howto-bare-metal.md"}
LASTING = ("run", "daemon")  # commands that go on until they are ended
PAGES = sorted(page.name for page in DOCS.glob("*.md") if commands(page))
Printed = dict[str, str]


class Shell:
    """Runs `ku` in a directory, and on a host if there is one."""

    def __init__(self, directory: Path, here: Callable[[Callable], object] = lambda call: call()) -> None:
        self.directory, self._here = directory, here
        self.environment = {**os.environ, "KU_SOCKET": "ku.sock"}
        self._lasting: list[subprocess.Popen[bytes]] = []

    def __call__(self, line: str) -> str:
        """What it prints; of one that lasts, as soon as it forwards."""
        words = shlex.split(line)
        command = [sys.executable, "-m", "kuproxy", *words]
        if words[0] in LASTING and "--check" not in words:
            self._start(command)
            return ""
        how = {"cwd": self.directory, "env": self.environment, "stdin": subprocess.DEVNULL}
        done = self._here(
            lambda: subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, **how)
        )
        assert done.returncode == 0, f"ku {line}: {done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def _start(self, command: list[str]) -> None:
        log = self.directory / "log"
        how = {"cwd": self.directory, "env": self.environment, "stdin": subprocess.DEVNULL}
        with log.open("wb") as file:
            process = self._here(lambda: subprocess.Popen(command, stdout=file, stderr=file, **how))
        self._lasting.append(process)
        until = time.monotonic() + 120
        while "event=forwarding" not in log.read_text():
            assert process.poll() is None and time.monotonic() < until, log.read_text()
            time.sleep(0.05)

    def close(self) -> None:
        for process in self._lasting:
            process.send_signal(signal.SIGTERM)
        for process in self._lasting:
            process.wait(20)


def run_page(name: str, shell: Shell) -> Printed:
    """Its files and its commands, in their order. What each printed."""
    printed: Printed = {}
    unknown = set(NOT_RUN.get(name, ()))
    for block in blocks(DOCS / name):
        if block.kind == "file":
            assert block.name, f"{name}:{block.line}: nothing before this block names its file"
            (shell.directory / block.name).write_text(block.content)
        elif block.kind == "command":
            unknown.discard(block.content)
            if block.content not in NOT_RUN.get(name, ()):
                printed[block.content] = shell(block.content)
    assert not unknown, f"{name} has no such commands any more: {unknown}"
    return printed


@pytest.mark.parametrize("name", [name for name in PAGES if name not in ON_A_NODE])
def test_the_commands_of_a_page(name: str, tmp_path: Path) -> None:
    printed = run_page(name, Shell(tmp_path))
    CHECKS.get(name, lambda _printed, _directory: None)(printed, tmp_path)


@contextmanager
def on_a_node(directory: Path) -> Iterator[tuple[Shell, Callable[[str, int], str]]]:
    """A shell on the node, and what asks an address and port from the client: which pod answers."""
    from netns.lab import Server, ask, network

    with network() as (client, node, pod):
        node.sysctl("ipv4/ip_forward", "1")
        pod.sh("ip addr add 10.2.0.3/24 dev p1", "ip addr add 10.2.0.4/24 dev p1", "ip addr add 10.0.0.1/24 dev p1")
        server = Server(pod, "pod", 8080)
        shell = Shell(directory, node.run)
        try:
            yield shell, lambda address, port: client.run(ask, "tcp", address, port)[0]
        finally:
            shell.close()
            server.close()


@pytest.mark.netns
@pytest.mark.parametrize("name", sorted(ON_A_NODE))
def test_the_commands_of_a_page_on_a_node(name: str, tmp_path: Path) -> None:
    with on_a_node(tmp_path) as (shell, asked):
        printed = run_page(name, shell)
        CHECKS[name](printed, tmp_path)
        if name == "howto-bare-metal.md":
            # At the end the daemon serves what the page has made of it.
            assert asked("90.0.0.1", 80) == "pod"
            listed = Client(str(tmp_path / "ku.sock")).request("GET", "/v1/vips")["vips"]
            pods = {
                each["vip"]["prefix"]: {pod["address"] for pod in each["pods"] if not pod["draining"]}
                for each in listed
            }
            assert pods == {"90.0.0.1/32": {"10.2.0.2", "10.2.0.3"}, "90.0.0.2/32": {"10.2.0.2", "10.2.0.4"}}


def test_what_the_readme_shows_is_printed(tmp_path: Path) -> None:
    """`$ ku …` and what stands below it."""
    readme = (DOCS.parent / "README.md").read_text()
    shown = re.findall(r"^    \$ ku (.+)\n((?:    .+\n)+)", readme, re.MULTILINE)
    assert shown
    for line, output in shown:
        printed = Shell(tmp_path)(line)
        assert printed.startswith(re.sub(r"^    ", "", output, flags=re.MULTILINE)), printed


def test_the_tutorial_tells_what_happens() -> None:
    assert run_python(DOCS / "tutorial.md") > 10


def test_only_the_tutorial_has_python() -> None:
    """So that no page has blocks that nobody runs."""
    pages = [page for page in DOCS.rglob("*.md") if any(each.kind == "python" for each in blocks(page))]
    assert [page.name for page in pages] == ["tutorial.md"]


# ------------------------------------------------------------------------------------------------- what came of it


def check_simulate(printed: Printed, directory: Path) -> None:
    assert (directory / "sent.pcap").read_bytes() == (directory / "replayed.pcap").read_bytes()
    for picture in (*directory.glob("*.svg"), *directory.glob("results/*.svg")):
        ElementTree.fromstring(picture.read_text())
    with (directory / "results/summary.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6 * 2 * 2
    with (directory / "results/series.csv").open() as file:
        assert len(list(csv.DictReader(file))) == len(rows) * 100
    # The page's table is what the command says.
    page = (DOCS / "simulate.md").read_text()
    here = re.findall(r"(\d+)  (karger|rendezvous) .*?%\s+([\d.]+) %", printed["simulate paper"])
    assert len(here) == 4
    for size, method, figure in here:
        assert re.search(rf"\| {int(size):,} \| {method.capitalize()} \| [\d.]+ % \| {figure} % \|", page)


def check_from_vpp(printed: Printed, _directory: Path) -> None:
    [ring] = [text for line, text in printed.items() if line.startswith("ring")]
    # The plugin's table for these pods.
    table = [1, 0, 0, 0, 0, 2, 0, 0, 2, 2, 1, 2, 2, 1, 1, 1]
    assert re.findall(r"10\.0\.0\.(\d)", ring)[:16] == [str(each + 1) for each in table]
    [explained] = [text for line, text in printed.items() if line.startswith("explain")]
    assert "3307" in explained


def check_from_kube_proxy(printed: Printed, _directory: Path) -> None:
    assert "iptables.masqueradeBit" in printed["kube-proxy --config config.conf --check"]
    [explained] = [text for line, text in printed.items() if line.startswith("explain")]
    assert "10.244." in explained and "8080" in explained


def check_quick_start(printed: Printed, directory: Path) -> None:
    one, other = (text for line, text in printed.items() if line.startswith("explain"))
    assert "10.0.0.1" in one and "without" in other
    assert len((directory / "out.pcap").read_bytes()) == len((directory / "in.pcap").read_bytes())


def check_bare_metal(printed: Printed, _directory: Path) -> None:
    assert "10.2.0.3" in printed["show vips verbose"]
    assert "90.0.0.1" in printed["explain tcp 10.1.0.2:40000 90.0.0.1:80"]


CHECKS: dict[str, Callable[[Printed, Path], None]] = {
    "simulate.md": check_simulate,
    "from-vpp.md": check_from_vpp,
    "from-kube-proxy.md": check_from_kube_proxy,
    "quick-start.md": check_quick_start,
    "howto-bare-metal.md": check_bare_metal,
}
