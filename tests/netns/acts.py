"""What the processes of a daemon ask of the kernel, act by act, and which capabilities each act turns out to need.

`python -m netns.acts` tries every act in processes and network namespaces of their own, with ever fewer capabilities,
until each that is left is needed, and prints JSON.  An act has a part that prepares it, with all privileges, and the
act itself, which runs after `keep_only`.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import resource
import signal
import socket
import struct
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from forked import forked
from kuproxy.announce.layer2 import Speaker
from kuproxy.confine.privilege import Capability, keep_only
from kuproxy.daemon.api.auth import peer_of
from kuproxy.drivers import _packet_socket
from kuproxy.drivers._packet_socket import PacketSockets, ring_shape
from kuproxy.drivers._xdp_socket import XdpMode, XdpSocket, open_socket, open_sockets
from kuproxy.drivers._xdp_umem import CHUNKS, SLOTS
from kuproxy.engine.memory import WorkerMemory
from kuproxy.errors import KuError, PrivilegeError
from kuproxy.keeper.vault import Vault
from kuproxy.steering import program
from kuproxy.steering.bpf import AttachType, Link, LoadedProgram, _bpf
from kuproxy.steering.links import KU0, KU1, VethPair
from kuproxy.steering.maps import SteeringMaps
from kuproxy.steering.namespace import PrivateNamespace
from kuproxy.steering.node import NodeWatch
from kuproxy.steering.surroundings import Surroundings
from kuproxy.steering.xdp import Where, XdpGate

_CLONE_NEWNET = 0x40000000
_BPF_LINK_UPDATE = 29  # include/uapi/linux/bpf.h, enum bpf_cmd
_SO_SNDBUFFORCE = 32
_PR_SET_DUMPABLE, _PR_SET_SECUREBITS, _NO_SETUID_FIXUP = 4, 28, 1 << 2  # linux/prctl.h, linux/securebits.h
NOBODY, SOMEBODY = 65534, 65533
Act = Callable[[], object]
_kept: list[object] = []  # what an act needs until its process ends

# What a permission that is missing looks like.
_REFUSED = (errno.EPERM, errno.EACCES)


def _programs(workers: int = 2) -> list[LoadedProgram]:
    maps = SteeringMaps(workers)
    builders = (program.steer, program.reply, program.guard)
    loaded = [program.drop().load(), *(each(1, workers).load(maps.by_name()) for each in builders)]
    _kept.extend((maps, loaded))
    return loaded


def listen_on_link() -> Act:
    return lambda: _kept.append(Speaker("lo"))


def attach_xdp() -> Act:
    return lambda: _kept.append(XdpGate("lo", 1, Where.GENERIC))


def open_xdp_socket() -> Act:
    return lambda: open_socket("lo")


def use_xdp_socket() -> Act:
    """What a worker does with one that it is handed, where locked memory has its usual limit."""
    sockets = open_sockets("lo")
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (8 << 20, 8 << 20))
    return lambda: XdpSocket("lo", 0, XdpMode.GENERIC, CHUNKS, SLOTS, True, sockets)


def register_xdp_socket() -> Act:
    gate = XdpGate("lo", 1, Where.GENERIC)
    bound = XdpSocket("lo", 0, XdpMode.GENERIC, 512, 1, True)
    _kept.extend((gate, bound))
    return lambda: gate.register(0, bound.fd)


def create_maps() -> Act:
    return SteeringMaps


def load_programs() -> Act:
    return _programs


def update_maps() -> Act:
    maps = SteeringMaps()
    return lambda: maps.write_config(1)


def read_maps() -> Act:
    maps = SteeringMaps()
    return maps.read_stats


def attach() -> Act:
    loaded = _programs()
    return lambda: [
        Link(loaded[0], 1, AttachType.TCX_INGRESS).close(),
        Link(loaded[2], 1, AttachType.TCX_EGRESS).close(),
    ]


def replace_program() -> Act:
    first, second = program.drop().load(), program.drop().load()
    link = Link(first, 1, AttachType.TCX_INGRESS)
    # link_fd, new_prog_fd, flags, old_prog_fd
    return lambda: _bpf(_BPF_LINK_UPDATE, struct.pack("=4I", link.fd, second.fd, 0, 0))  # type: ignore[arg-type]


def make_namespace() -> Act:
    return PrivateNamespace.create


def enter_namespace() -> Act:
    return PrivateNamespace.create().enter


def make_pair() -> Act:
    """The pair of interfaces, its addresses, neighbours and settings below /proc/sys/net; all but the far side."""
    netlink = IPRoute()
    netlink.bind(groups=0)
    namespace = PrivateNamespace.current()
    # The far side's own settings are made inside a namespace, which `enter_namespace` has tried already.
    namespace.run = lambda function: function()  # type: ignore[method-assign]
    return lambda: VethPair(netlink, namespace, 2, Vault())


def _pair() -> IPRoute:
    netlink = IPRoute()
    netlink.bind(groups=0)
    netlink.link("add", ifname=KU0, kind="veth", peer=KU1)
    for name in (KU0, KU1):
        netlink.link("set", index=socket.if_nametoindex(name), state="up")
    return netlink


def change_routes() -> Act:
    netlink = _pair()
    return lambda: netlink.route("add", dst="10.96.0.0/16", oif=socket.if_nametoindex(KU0))


def write_sysctl() -> Act:
    path = Path("/proc/sys/net/ipv4/conf/lo/rp_filter")
    return lambda: path.write_text("2")


def follow_events() -> Act:
    netlink = IPRoute()
    netlink.bind(groups=0)
    return lambda: NodeWatch(netlink).poll()


def _packet_sockets(interface: str) -> PacketSockets:
    shape = ring_shape(64, 4096)
    return PacketSockets(*_packet_socket.open_sockets(interface, shape, None), shape)


def open_packet_sockets() -> Act:
    """With their ring and, where it is allowed, a greater send buffer."""
    _pair()
    return lambda: _kept.append(_packet_sockets(KU1))


def send_and_receive() -> Act:
    _pair()
    here, there = (_packet_sockets(each) for each in (KU0, KU1))
    frame = bytes(10) + b"\xff" * 12 + b"\x08\x00" + bytes(50)  # virtio_net_hdr, then Ethernet

    def act() -> None:
        here.tx.send(frame)
        there.rx.getsockopt(263, 6, 8)  # PACKET_STATISTICS
        here.gone()

    return act


def look_around() -> Act:
    """Links, neighbours, routes, rules, queues, filters, programs at an egress; and hear of their changes."""
    return lambda: _kept.append((around := Surroundings(), around.programs(1), around.look()))


def greater_send_buffer() -> Act:
    opened = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    return lambda: opened.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, 1 << 26)


def resize() -> Act:
    return lambda: WorkerMemory(12)


def give_socket_to_group() -> Act:
    path = Path(tempfile.mkdtemp(), "ku.sock")
    opened = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    opened.bind(str(path))

    def act() -> None:
        try:
            os.chown(path, -1, SOMEBODY)
            path.chmod(0o660)
        finally:
            path.unlink()
            path.parent.rmdir()

    return act


def ask_who_it_is() -> Act:
    here, _there = socket.socketpair()
    _kept.append(_there)
    return lambda: peer_of(here)


def listen_below_1024() -> Act:
    opened = socket.socket()
    return lambda: opened.bind(("127.0.0.1", 443))


def listen_above_1024() -> Act:
    opened = socket.socket()
    return lambda: opened.bind(("127.0.0.1", 9153))


def _child() -> int:
    """A process without capabilities; it has given them up when this returns, or whoever has fewer could not look."""
    ready, told = os.pipe()
    child = os.fork()
    if child == 0:
        keep_only()
        os.write(told, b".")
        signal.pause()
    os.close(told)
    os.read(ready, 1)
    os.close(ready)
    return child


def end_worker() -> Act:
    child = _child()
    return lambda: (os.kill(child, signal.SIGKILL), os.waitpid(child, 0))


def look_at_worker() -> Act:
    child = _child()

    def act() -> None:
        try:
            Path(f"/proc/{child}/smaps_rollup").read_bytes()
            os.listdir(f"/proc/{child}/fd")
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)

    return act


def write_own_file() -> Act:
    directory = Path(tempfile.mkdtemp())

    def act() -> None:
        file = directory / "state.json"
        file.write_text("{}")
        file.rename(directory / "state")
        (directory / "state").unlink()
        directory.rmdir()

    return act


def read_others_file() -> Act:
    """Of another user, and for that user alone; the file has no name, so that nobody has to remove it."""
    fd = os.memfd_create("another's")
    os.fchown(fd, SOMEBODY, SOMEBODY)
    os.fchmod(fd, 0o600)
    return lambda: Path(f"/proc/self/fd/{fd}").read_bytes()


def bounding_set() -> Act:
    libc = ctypes.CDLL(None, use_errno=True)

    def act() -> None:
        if libc.prctl(24, int(Capability.SYS_BOOT), 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "PR_CAPBSET_DROP")

    return act


ACTS: dict[str, Callable[[], Act]] = {
    "create the maps": create_maps,
    "load the programs (`sched_cls`)": load_programs,
    "write to a map that is open": update_maps,
    "read a map that is open": read_maps,
    "attach a program (TCX link)": attach,
    "replace a link's program (`BPF_LINK_UPDATE`)": replace_program,
    "make a network namespace": make_namespace,
    "enter a network namespace": enter_namespace,
    "make ku0 and ku1, with addresses and neighbours": make_pair,
    "change routes": change_routes,
    "write below `/proc/sys/net`": write_sysctl,
    "hear of links and addresses": follow_events,
    "open packet sockets": open_packet_sockets,
    "send and receive on open packet sockets": send_and_receive,
    "exceed `net.core.wmem_max` (`SO_SNDBUFFORCE`)": greater_send_buffer,
    "resize a flow table": resize,
    "give the API's socket to a group": give_socket_to_group,
    "ask who a client is (`SO_PEERCRED`)": ask_who_it_is,
    "listen at a TCP port below 1024": listen_below_1024,
    "listen at a TCP port from 1024 on": listen_above_1024,
    "end a worker": end_worker,
    "read a worker's memory figures": look_at_worker,
    "write the state file": write_own_file,
    "read another user's private file": read_others_file,
    "attach the XDP program, with its map of sockets": attach_xdp,
    "open an AF_XDP socket": open_xdp_socket,
    "lock packet memory for an open AF_XDP socket": use_xdp_socket,
    "put an AF_XDP socket into the open map": register_xdp_socket,
    "look at what the flow cache's shortcuts depend on": look_around,
    "listen to ARP and neighbour discovery (`ku announce layer2`)": listen_on_link,
    "reduce the bounding set": bounding_set,
}


def _become(user: int) -> None:
    """Another user with the same capabilities, as systemd makes them with AmbientCapabilities."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_SECUREBITS, _NO_SETUID_FIXUP, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "PR_SET_SECUREBITS")
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
    libc.prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0)  # else its own files in /proc belong to root


def _may(name: str, user: int, kept: frozenset[Capability]) -> bool:
    """Whether an act succeeds in a fresh process with these capabilities; an error of another kind is raised."""
    text = forked(lambda: _try(name, user, kept))
    if text not in ("yes", "no"):
        raise RuntimeError(f"{name}, user {user}, with {sorted(kept)}: {text}")
    return text == "yes"


def _try(name: str, user: int, kept: frozenset[Capability]) -> str:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNET) != 0:
        return f"unshare: {os.strerror(ctypes.get_errno())}"
    try:
        if user:
            _become(user)
        act = ACTS[name]()
        keep_only(*kept)
        act()
    except PrivilegeError:
        return "no"
    except (KuError, OSError, NetlinkError) as error:
        cause = error.__cause__ if isinstance(error, KuError) else error
        number = getattr(cause, "errno", None) or getattr(cause, "code", None)
        if number in _REFUSED or (isinstance(error, KuError) and "CAP_" in str(error)):
            return "no"
        return f"{type(error).__name__}: {error}"
    except BaseException as error:
        return f"{type(error).__name__}: {error}"
    return "yes"


def _without(
    name: str, user: int, kept: frozenset[Capability], doubtful: list[Capability]
) -> frozenset[Capability]:
    """`kept` less as many of the doubtful ones as the act can do without, the first before the later ones."""
    less = kept.difference(doubtful)
    if _may(name, user, less):
        return less
    if len(doubtful) == 1:
        return kept
    half = len(doubtful) // 2
    return _without(name, user, _without(name, user, kept, doubtful[:half]), doubtful[half:])


def needed(name: str, user: int) -> list[str]:
    """A least set of capabilities with which an act succeeds: all are needed, and together they are enough.

    CAP_SYS_ADMIN often stands in for a smaller one; it is the first to go, so that the smaller one is found.
    """
    every = sorted(Capability, key=lambda each: each != Capability.SYS_ADMIN)
    assert _may(name, user, frozenset(every)), f"{name}: not even with all capabilities"
    return [f"CAP_{each.name}" for each in sorted(_without(name, user, frozenset(every), every))]


def main() -> int:
    """Print what each act needs, as JSON: name → what root needs, and what another user needs."""
    json.dump({name: [needed(name, user) for user in (0, NOBODY)] for name in ACTS}, sys.stdout, indent=1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
