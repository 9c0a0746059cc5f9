"""Chaos on a real node: namespaces, `ku daemon` under its keeper, the kernel's own TCP, and somebody who breaks things.

The seed decides which faults come, with what figures, in which order; not how the kernel schedules processes, so a run
can be had again, but not to the microsecond.

Invariants, asked during and after every fault:
- no connection to a pod breaks, and every message on it is answered;
- new connections reach the pods that are configured, and only these;
- what the daemon says it serves is what it was told, and what was refused was refused with a line and changed nothing.
"""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from random import Random

from kuproxy.client import Client, Refusal
from netns.many_connections import Load, many_connections, vip_script
from netns.test_daemon import SERVICE, Daemon
from netns.test_hot_restart import processes, replaced
from netns.world import WEB, Kept, web, world

CONNECTIONS = 200
SETTLED_WITHIN_S = 30.0
FAULTS_OF_A_SEED = 3
QUIET_S = 0.4  # before and after a fault, while messages go on
STATE_KB = 16_384  # the state directory's file system


class Node:
    """The daemon, its load, and what it was told."""

    def __init__(self, daemon: Daemon, load: Load) -> None:
        self.daemon, self.load = daemon, load
        self.host, self.client = daemon.made.node, daemon.made.client
        self.everybody = {pod.ipv4: pod.name for pod in daemon.made.endpoints}
        self.pods = set(self.everybody)  # that are configured for the web VIP
        self.numbers = iter(range(1, 10_000))
        self.ended: list[str] = []  # what was undone in the end

    def api(self) -> Client:
        return Client(str(self.daemon.socket))

    def ip(self, words: str) -> None:
        subprocess.run(
            ["ip", "-n", self.host.name, *words.split()], check=True, capture_output=True, timeout=10
        )

    def batch(self, lines: list[str]) -> None:
        command = ["ip", "-n", self.host.name, "-force", "-batch", "-"]
        subprocess.run(command, input="\n".join(lines), text=True, check=True, capture_output=True, timeout=60)

    @property
    def control(self) -> int:
        return processes(self.daemon)["control"][0]

    @property
    def worker(self) -> int:
        return processes(self.daemon)["worker"][0]

    # -------------------------------------------------------------------------------------------- what must hold

    def through(self, fault: Callable[[Node, Random], None], random: Random) -> None:
        """Do it while messages go on on every connection."""
        self.load.begin()
        time.sleep(QUIET_S)
        fault(self, random)
        self.settle()
        time.sleep(QUIET_S)
        report = self.load.report()
        assert not report.broken, f"{fault.__name__}: {report}\n{self.daemon.log[-4000:]}"
        assert report.connections == CONNECTIONS and report.unanswered == 0, f"{fault.__name__}: {report}"

    def settle(self) -> None:
        """Wait until the node is as it was told to be, and try it."""
        deadline = time.monotonic() + SETTLED_WITHIN_S
        while True:
            try:
                served = self.served()
                roles = processes(self.daemon)
                if served == self.pods and {"keeper", "control", "worker"} <= roles.keys():
                    break
                why: object = (served, self.pods, roles)
            except Exception as error:  # nobody answers in between
                why = error
            assert time.monotonic() < deadline, f"not settled: {why}\n{self.daemon.log[-4000:]}"
            time.sleep(0.05)
        wanted = {self.everybody[each] for each in self.pods}
        found = {web(self.client, WEB[0]) for _ in range(12)}
        assert found <= wanted and found, (found, wanted)

    def large(self) -> int:
        """How many VIPs of `exhaust_memory` there are."""
        state = self.api().request("GET", "/v1/state")
        return sum(each["prefix"].startswith("100.64.") for each in state["vips"])

    def served(self) -> set[str]:
        """Pods of the web VIP that get new connections, as the daemon says."""
        vips = self.api().request("GET", "/v1/vips?limit=1000")["vips"]
        (vip,) = [each for each in vips if each["vip"]["prefix"] == f"{WEB[0]}/32"]
        return {each["address"] for each in vip["pods"] if not each["draining"]}


# ----------------------------------------------------------------------------------------------------- faults


def kill_control(node: Node, _random: Random) -> None:
    replaced(node.daemon, "control", lambda pid: os.kill(pid, signal.SIGKILL))


def kill_worker(node: Node, _random: Random) -> None:
    replaced(node.daemon, "worker", lambda pid: os.kill(pid, signal.SIGKILL))


def upgrade(node: Node, _random: Random) -> None:
    replaced(node.daemon, "control", lambda _: node.daemon.ku("upgrade"))


def pause(pid: int, seconds: float) -> None:
    os.kill(pid, signal.SIGSTOP)
    try:
        time.sleep(seconds)
    finally:
        os.kill(pid, signal.SIGCONT)


def stop_control(node: Node, random: Random) -> None:
    pause(node.control, random.uniform(0.1, 0.9))


def stop_worker(node: Node, random: Random) -> None:
    pause(node.worker, random.uniform(0.02, 0.4))


def change_pods(node: Node, random: Random) -> None:
    """A pod goes, with connections on it, and another comes back."""
    gone = sorted(set(node.everybody) - node.pods)
    if gone and random.random() < 0.6:
        chosen = random.choice(gone)
        node.daemon.ku(f"pod {WEB[0]}/32 {chosen}")
        node.pods.add(chosen)
    elif len(node.pods) > 1:
        chosen = random.choice(sorted(node.pods))
        kept = Kept(node.client, WEB[0], 80)
        name, _ = kept.get()
        node.daemon.ku(f"pod {WEB[0]}/32 {chosen} del")
        node.pods.discard(chosen)
        assert kept.get()[0] == name, "it drains"
        kept.close()


def lose_netlink_events(node: Node, random: Random) -> None:
    """More of them than a socket holds, while control stands still; one of them mattered."""
    late = f"10.244.0.{random.randrange(200, 250)}"
    lines = [f"addr {verb} 10.99.{n >> 7 & 127}.{n & 127}/32 dev lo" for n in range(2500) for verb in ("add", "del")]
    pid = node.control
    os.kill(pid, signal.SIGSTOP)
    try:
        node.batch([*lines[:2500], f"addr add {late}/32 dev lo", *lines[2500:]])
    finally:
        os.kill(pid, signal.SIGCONT)
    try:
        until(lambda: web(node.client, late, 30080) in node.everybody.values(), "the new address is served")
    finally:
        node.ip(f"addr del {late}/32 dev lo")


def flap_interface(node: Node, random: Random) -> None:
    """One that carries nothing, and one with pods' connections on it."""
    for _ in range(random.randrange(1, 4)):
        name = f"flap{next(node.numbers)}"
        node.ip(f"link add {name} type veth peer name {name}p")
        node.ip(f"link set {name} up")
        node.ip(f"link del {name}")
    node.host.sysctl("ipv6/conf/all/keep_addr_on_down", "1")
    pod = f"pod{random.randrange(1, 4)}"
    node.ip(f"link set {pod} down")
    time.sleep(random.uniform(0.0, 0.15))
    node.ip(f"link set {pod} up")


@contextmanager
def limited(pid: int, what: int, least: int) -> Iterator[None]:
    """Let a process have no more of something than it has."""
    _, hard = before = resource.prlimit(pid, what)
    resource.prlimit(pid, what, (least, hard))
    try:
        yield
    finally:
        with suppress(ProcessLookupError):  # it may have died of it
            resource.prlimit(pid, what, before)


def exhaust_descriptors(node: Node, random: Random) -> None:
    """No new ones for a while, with people at the door; packets need none."""
    pid = node.control
    highest = max(int(each) for each in os.listdir(f"/proc/{pid}/fd"))
    with limited(pid, resource.RLIMIT_NOFILE, highest + 1):
        askers = [
            subprocess.Popen(
                ["curl", "-s", "-m", "1", "--unix-socket", str(node.daemon.socket), "http://ku/v1/health"],
                stdout=subprocess.DEVNULL,
            )
            for _ in range(random.randrange(2, 8))
        ]
        web(node.client, WEB[0])
        for each in askers:
            each.wait(10)


def exhaust_memory(node: Node, random: Random) -> None:
    """No page more than it has, and a configuration that needs many: all of it, or nothing, even if it dies of it."""
    before = node.api().request("GET", "/v1/state")
    pid, count = node.control, 3000 + random.randrange(2000)
    size = int(next(x for x in Path(f"/proc/{pid}/status").read_text().splitlines() if "VmSize" in x).split()[1])
    lines = "\n".join(f"ku vip 100.64.{n >> 8}.{n & 255}/32 protocol tcp port 80" for n in range(count))
    with limited(pid, resource.RLIMIT_AS, size << 10), suppress(Refusal):
        node.api().request("POST", "/v1/ku", {"lines": lines})
    until(lambda: node.large() in (0, count), f"none of {count} or all")
    until(lambda: bool(node.api().request("PUT", "/v1/state", before)), "as before")
    assert node.large() == 0


def fill_disk(node: Node, random: Random) -> None:
    """No byte is left for the state: a change is refused, nothing of it is there, and the next one is possible."""
    full = node.daemon.directory / "state" / "full"
    with full.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))
    other = random.choice(sorted(set(node.everybody)))
    verb = " del" if other in node.pods else ""
    try:
        refused = node.daemon.ku(f"pod {WEB[0]}/32 {other}{verb}", status=2)
        assert "No space left on device; nothing was changed" in refused, refused
        assert node.served() == node.pods
    finally:
        full.unlink()


FAULTS = (
    kill_control,
    kill_worker,
    upgrade,
    stop_control,
    stop_worker,
    change_pods,
    lose_netlink_events,
    flap_interface,
    exhaust_descriptors,
    exhaust_memory,
    fill_disk,
)


def until(true: Callable[[], bool], what: str, seconds: float = SETTLED_WITHIN_S) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            if true():
                return
            why: object = "not yet"
        except Exception as error:
            why = error
        assert time.monotonic() < deadline, f"{what}: {why}"
        time.sleep(0.05)


def plan(seed: int) -> list[Callable[[Node, Random], None]]:
    """Which faults a seed brings."""
    return Random(f"plan {seed}").sample(FAULTS, FAULTS_OF_A_SEED)


def live_through(node: Node, seed: int) -> None:
    """Raises what breaks, after saying how to have it again."""
    random, names = Random(f"figures {seed}"), [each.__name__ for each in plan(seed)]
    try:
        for fault in plan(seed):
            node.through(fault, random)
    except BaseException:
        print(f"seed {seed}: {', '.join(names)}; again: python -m pytest tests/chaos/test_real.py --seed {seed}")
        raise


@contextmanager
def chaotic_node() -> Iterator[Node]:
    """A daemon with connections to the pods, whose state directory is a small file system."""
    with world() as made:
        state = made.directory / "state"
        state.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={STATE_KB}k", "tmpfs", str(state)], check=True)
        try:
            daemon = Daemon(made)
            try:
                daemon.start()
                daemon.script("\n".join(vip_script(made)))
                daemon.script(SERVICE)
                daemon.ku(f"pod {WEB[0]}/32 {' '.join(each.ipv4 for each in made.endpoints)}")
                with many_connections(made, CONNECTIONS, 1000) as load:
                    yield Node(daemon, load)
                daemon.stop()
            finally:
                daemon.process.kill()
                daemon.notified.close()
        finally:
            subprocess.run(["umount", "-l", str(state)], check=True)
