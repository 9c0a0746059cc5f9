"""A node, a client and pods as network namespaces, joined by veth pairs.

                        node
    client eth0 ── client0    pod1 ── eth0 pod1
                              pod2 ── eth0 pod2 ...

The node routes between them; everybody else's default route leads to it.  Offloads stay as the kernel sets them.
The namespaces have names (`ip netns` shows them) that begin with a prefix and the process that made them, so that
several runs do not meet, and what a killed run left can be told from what a living one uses.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from ipaddress import IPv4Interface, IPv6Interface, ip_interface
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from pyroute2 import IPRoute, netns
from pyroute2.netlink.exceptions import NetlinkError

from kuproxy.demo import inside
from kuproxy.errors import KuError, PrivilegeError
from kuproxy.steering.namespace import PrivateNamespace

__all__ = ["Host", "Network", "Pair", "bring_up", "remove_stale"]

Result = TypeVar("Result")
Interface = IPv4Interface | IPv6Interface

_DIRECTORY = Path(netns.NETNS_RUN_DIR)
_NODAD = 0x02  # IFA_F_NODAD: usable at once, without asking whether somebody else has it
_UP = 0x1
STOP_PATIENCE_S = 3.0


class Host:
    """One network namespace with a name, and the processes that were started in it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.processes: list[subprocess.Popen[Any]] = []
        _create(name)
        self._namespace = PrivateNamespace(os.open(self.path, os.O_RDONLY | os.O_CLOEXEC))
        try:
            self.call(self._prepare)
        except BaseException:
            self.close()
            raise

    @property
    def path(self) -> Path:
        """The file that stands for the namespace."""
        return _DIRECTORY / self.name

    @property
    def fd(self) -> int:
        """A descriptor of the namespace, as netlink takes it."""
        return self._namespace.fd

    def call(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """Call a function inside, in a thread of its own; sockets that it returns stay inside."""
        return self._namespace.run(lambda: function(*arguments))

    def command(self, *command: str) -> list[str]:
        """The command line that runs another one inside, for as long as the calling thread lives."""
        return [sys.executable, "-I", "-S", inside.__file__, str(self.path), str(os.getpid()), *command]

    def start(self, *command: str, **options: Any) -> subprocess.Popen[Any]:
        """Start a process inside; `close` ends it. Ctrl-C on the terminal does not reach it."""
        process: subprocess.Popen[Any] = subprocess.Popen(
            self.command(*command), start_new_session=True, **options
        )
        self.processes.append(process)
        return process

    def sysctl(self, path: str, value: str | None = None) -> str:
        """Read, or write, what lies below /proc/sys/net."""
        file = Path("/proc/sys/net", path)
        if value is not None:
            self.call(file.write_text, value)
        return self.call(file.read_text).strip()

    def netlink(self, function: Callable[[IPRoute], Result]) -> Result:
        """Ask the namespace's kernel something."""

        def ask() -> Result:
            with IPRoute() as netlink:
                return function(netlink)

        return self.call(ask)

    def add_default_route(self, via: str) -> None:
        """For the family of the next hop."""
        destination = "0.0.0.0/0" if ip_interface(via).version == 4 else "::/0"
        self.netlink(lambda netlink: netlink.route("add", dst=destination, gateway=via))

    @staticmethod
    def _prepare() -> None:
        with IPRoute() as netlink:
            netlink.link("set", index=1, flags=_UP, change=_UP)  # lo is always the first
        if not Path("/proc/sys/net/ipv6").exists():
            raise KuError("this kernel has no IPv6, which the network needs")
        for scope in ("all", "default"):
            Path(f"/proc/sys/net/ipv6/conf/{scope}/disable_ipv6").write_text("0")
            Path(f"/proc/sys/net/ipv6/conf/{scope}/accept_dad").write_text("0")

    def close(self) -> None:
        """End the processes and delete the namespace. Idempotent."""
        stop(self.processes)
        self.processes.clear()
        self._namespace.close()
        with suppress(OSError):
            netns.remove(self.name)


def stop(processes: Iterable[subprocess.Popen[Any]]) -> None:
    """SIGTERM to all, SIGKILL to those that do not end within a few seconds."""
    running = [process for process in processes if process.poll() is None]
    for process in running:
        process.terminate()
    deadline = time.monotonic() + STOP_PATIENCE_S
    for process in running:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    for process in processes:
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()


class Pair:
    """One veth pair: a host's eth0, and the node's end, which has the host's name."""

    def __init__(self, host: Host, node: Host, port: str, addresses: Sequence[tuple[str, str]]) -> None:
        """`addresses`: (host's, node's), each with its prefix length; the node's becomes the default route."""
        self.host, self.node, self.port = host, node, port
        peer = {"ifname": "eth0", "net_ns_fd": host.fd}
        node.netlink(lambda netlink: netlink.link("add", ifname=port, kind="veth", peer=peer))
        bring_up(node, port, [ip_interface(ours) for _, ours in addresses])
        bring_up(host, "eth0", [ip_interface(theirs) for theirs, _ in addresses])
        for _, ours in addresses:
            host.add_default_route(str(ip_interface(ours).ip))


class Network:
    """A node that routes, a client, and pods; a context manager that removes it all.

    Host n (the client is 0) has 10.244.n.2/24 and fd00:10:244:n::2/64, the node's end 10.244.n.1 and fd00:10:244:n::1.
    """

    def __init__(self, prefix: str, pods: int) -> None:
        self.hosts: list[Host] = []
        self._names: list[str] = []  # of namespaces that exist, or are about to
        start = f"{prefix}-{os.getpid()}"
        try:
            self.node = self._add(f"{start}-node")
            self.client = self._add(f"{start}-client")
            self.pods = [self._add(f"{start}-pod{number}") for number in range(1, pods + 1)]
            self.pairs = [
                Pair(
                    host, self.node, port, list(zip(addresses(number, 2), addresses(number, 1), strict=True))
                )
                for number, (host, port) in enumerate(
                    [(self.client, "client0"), *((pod, f"pod{i}") for i, pod in enumerate(self.pods, 1))]
                )
            ]
            self.node.sysctl("ipv4/ip_forward", "1")
            self.node.sysctl("ipv6/conf/all/forwarding", "1")
        except NetlinkError as error:
            self.close()
            raise KuError(f"building the network: {os.strerror(error.code)}") from error
        except BaseException:
            self.close()
            raise

    def _add(self, name: str) -> Host:
        if (_DIRECTORY / name).exists():
            raise KuError(f"there is a network namespace {name} already")
        self._names.append(name)
        host = Host(name)
        self.hosts.append(host)
        return host

    def __enter__(self) -> Network:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End every process that was started in it, then delete it. Idempotent."""
        stop([process for host in self.hosts for process in host.processes])
        for host in self.hosts:
            host.close()
        self.hosts.clear()
        for name in self._names:  # those that were interrupted before they were hosts
            with suppress(OSError):
                netns.remove(name)
        self._names.clear()


def addresses(network: int, host: int) -> tuple[str, str]:
    """IPv4 and IPv6, with prefix lengths, of a host (1: the node) in one of the networks."""
    return f"10.244.{network}.{host}/24", f"fd00:10:244:{network}::{host}/64"


def bring_up(host: Host, name: str, interfaces: Iterable[Interface]) -> None:
    """Give an interface its addresses, and set it up."""

    def ask(netlink: IPRoute) -> None:
        (index,) = netlink.link_lookup(ifname=name)
        for each in interfaces:
            flags = {"flags": _NODAD} if each.version == 6 else {}
            netlink.addr("add", index=index, address=str(each.ip), prefixlen=each.network.prefixlen, **flags)
        netlink.link("set", index=index, flags=_UP, change=_UP)

    host.netlink(ask)


def _create(name: str) -> None:
    # A process of pyroute2's makes it; a signal of ours must not leave that one to itself halfway.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
    try:
        netns.create(name)
    except OSError as error:
        with suppress(OSError):  # the file, to which no namespace has been bound
            (_DIRECTORY / name).unlink()
        why = f": {error.strerror}" if error.strerror else ""
        raise PrivilegeError(
            f"a network namespace cannot be made{why}; CAP_SYS_ADMIN (or root) is needed"
        ) from error
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def remove_stale(prefix: str) -> list[str]:
    """Delete namespaces that a killed run left: those whose process is gone. Returns their names.

    A prefix followed by a number, for several networks of one process, counts too.
    """
    pattern = re.compile(rf"{re.escape(prefix)}\d*-(\d+)-\w+")
    removed = []
    for name in netns.listnetns():
        match = pattern.fullmatch(name)
        if match and not Path("/proc", match[1]).exists():
            with suppress(OSError):
                netns.remove(name)
                removed.append(name)
    return removed
