"""What it costs to ask the kernel's routes where a pod's reply may come in: in the program `steer`, and in the cache's.

One frame, again and again, in a namespace of its own with a route to the pod and so many others.  `any` is the same
program without the question; rounds of both take turns.  Needs root; without, there are no cases.
"""

import os
import struct
import subprocess
from contextlib import ExitStack
from ipaddress import ip_address
from pathlib import Path
from socket import if_nametoindex

import numpy as np

from bench.harness import Case, Sample, Scale
from kuproxy.steering import program
from kuproxy.steering.bpf import LoadedProgram, Verdict
from kuproxy.steering.cache_layout import LEASE_ROW
from kuproxy.steering.cache_maps import ENDS, CacheMaps
from kuproxy.steering.cache_program import cache
from kuproxy.steering.keys import ConfigBit, endpoint_keys
from kuproxy.steering.maps import PRESENT, SteeringMaps
from kuproxy.steering.namespace import PrivateNamespace

_MAC = "02:00:00:00:00:42"
_POD = {4: "10.2.0.2", 6: "fd02::2"}
_CLIENT = {4: "198.51.100.1", 6: "2001:db8::1"}
_TCP, _POD_PORT, _CLIENT_PORT = 6, 8080, 40000


def _reply(family: int) -> bytes:
    """An empty segment with ACK from the pod to its client."""
    source, destination = ip_address(_POD[family]).packed, ip_address(_CLIENT[family]).packed
    tcp = struct.pack(">2HIIBBHHH", _POD_PORT, _CLIENT_PORT, 1, 1, 0x50, 0x10, 1024, 0, 0)
    if family == 4:
        ip = struct.pack(">BBHHHBBH", 0x45, 0, 40, 0, 0, 64, _TCP, 0) + source + destination
    else:
        ip = struct.pack(">IHBB", 6 << 28, 20, _TCP, 64) + source + destination
    mac = bytes.fromhex(_MAC.replace(":", ""))
    return mac + bytes(6) + (b"\x08\x00" if family == 4 else b"\x86\xdd") + ip + tcp


class Place:
    """A namespace with `ku`, `pod` (which the route to the pod names) and `other`; programs are tried at these."""

    def __init__(self, stack: ExitStack, routes: int) -> None:
        self._namespace = PrivateNamespace.create()
        stack.callback(self._namespace.close)
        self.index: dict[str, int] = {}
        self._namespace.run(lambda: self._set_up(routes))

    def _set_up(self, routes: int) -> None:
        lines = []
        for name in ("ku", "pod", "other"):
            lines += [
                f"link add {name} address {_MAC} type veth peer name {name}-peer",
                f"link set {name} up",
                f"link set {name}-peer up",
            ]
        lines += ["route add 10.2.0.0/24 dev pod", "route add default dev other"]
        lines += ["-6 route add fd02::/64 dev pod", "-6 route add default dev other"]
        for number in range(routes):
            lines.append(f"route add 172.{16 + (number >> 16)}.{number >> 8 & 255}.{number & 255} dev other")
            lines.append(f"-6 route add fd03::{number + 1:x} dev other")
        for six in (False, True):
            batch = "\n".join(line.removeprefix("-6 ") for line in lines if line.startswith("-6 ") is six)
            command = ["ip", *(["-6"] if six else []), "-batch", "-"]
            subprocess.run(command, input=batch, text=True, check=True, capture_output=True)
        Path("/proc/sys/net/ipv4/conf/ku/forwarding").write_text("1")
        Path("/proc/sys/net/ipv6/conf/ku/forwarding").write_text("1")
        self.index = {name: if_nametoindex(name) for name in ("ku", "pod", "other")}

    def run(self, tried: LoadedProgram, frame: bytes, repeat: int, interface: str, expected: int) -> float:
        """ns a packet."""
        index = self.index[interface]
        done = self._namespace.run(lambda: tried.test_run(frame, index, repeat=repeat))
        assert done.verdict == expected
        return float(done.duration_ns)


class ReplyCase(Case):
    """A reply, where it may come in with and without the question, and where it may not."""

    def __init__(self, family: int, routes: int, repeat: int) -> None:
        name = f"steering-ip{family}tcp-reply-{routes}route"
        super().__init__(name, f"BPF_PROG_TEST_RUN of {repeat:,}; refused: at another interface")
        self._family, self._routes, self._repeat = family, routes, repeat
        self._stack = ExitStack()

    def prepare(self) -> None:
        self._place = Place(self._stack, self._routes)
        self._maps = SteeringMaps()
        self._stack.callback(self._maps.close)
        keys = endpoint_keys(ip_address(_POD[self._family]), _TCP, _POD_PORT, returning=True)
        self._maps.steer.update(dict.fromkeys(keys, PRESENT))
        self._program = program.steer(self._place.index["ku"]).load(self._maps.by_name())
        self._stack.callback(self._program.close)

    def sample(self) -> Sample:
        what, run = (self._program, _reply(self._family), self._repeat), self._place.run
        self._maps.write_config(0)
        without = run(*what, "pod", Verdict.REDIRECT)
        self._maps.write_config(ConfigBit.STRICT)
        return {
            "any": without,
            "strict": run(*what, "pod", Verdict.REDIRECT),
            "refused": run(*what, "other", Verdict.NEXT),
        }

    def finish(self) -> None:
        self._stack.close()


class CachedReplyCase(ReplyCase):
    """The same in the flow cache's program; there it is asked once a second."""

    def __init__(self, family: int, routes: int, repeat: int) -> None:
        super().__init__(family, routes, repeat)
        self.name = f"steering-ip{family}tcp-cached-reply-{routes}route"

    def prepare(self) -> None:
        super().prepare()
        self._cache = CacheMaps(64)
        self._stack.callback(self._cache.close)
        built = cache(self._place.index["ku"])
        self._program = built.load({**self._maps.by_name(), **self._cache.by_name()})
        self._stack.callback(self._program.close)
        ends = np.zeros(1, ENDS)
        # What is rewritten stays as it is, so that the same frame hits again and again.
        for name, text in (("client", _CLIENT), ("vip", _POD), ("pod", _POD), ("seen", _CLIENT)):
            ends[name] = np.frombuffer(ip_address(text[self._family]).packed.rjust(16, b"\0"), np.uint8)
        ends["client_port"] = ends["seen_port"] = _CLIENT_PORT
        ends["vip_port"] = ends["pod_port"] = _POD_PORT
        ends["protocol"], ends["family"] = _TCP, self._family
        pairs = np.array([1])
        self._cache.enter(pairs, np.array([1], np.uint32), ends)
        self._cache.rows["mac"] = np.frombuffer(bytes.fromhex(_MAC.replace(":", "")), np.uint8)
        self._cache.allow(pairs)
        self._cache.rows["last_seen_ns"][LEASE_ROW] = (1 << 63) - 1


def cases(scale: Scale) -> list[Case]:
    """With few routes, and with as many as a large cluster's node has to pods and VIPs."""
    if os.geteuid() != 0:
        return []
    counts = (4, min(10_000, scale.packets))
    return [
        kind(family, routes, scale.packets)
        for kind in (ReplyCase, CachedReplyCase)
        for family in (4, 6)
        for routes in counts
    ]
