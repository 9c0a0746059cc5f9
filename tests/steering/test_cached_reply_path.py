"""The flow cache's program: replies are rewritten where their pod is, and forged ones close nothing."""

from __future__ import annotations

from contextlib import ExitStack
from ipaddress import ip_address

import numpy as np
import pytest

from kuproxy.steering.bpf import Verdict
from kuproxy.steering.cache_maps import ENDS, CacheMaps
from kuproxy.steering.cache_program import cache
from kuproxy.steering.keys import ConfigBit
from kuproxy.steering.steering import _u32
from packets import ACK, FIN, RST, frame, tcp, udp
from steering.frames import TCP
from steering.places import INTERFACES, MAC, Rig

pytestmark = pytest.mark.netns  # loading a program needs the same privilege


@pytest.fixture(scope="module")
def rig(stack: ExitStack) -> Rig:
    return Rig(stack)


class CacheRig:
    """The cache's program with two flows, at pods behind `pod`."""

    def __init__(self, stack: ExitStack, rig: Rig) -> None:
        self.rig = rig
        self.maps = CacheMaps(64)
        stack.callback(self.maps.close)
        self.program = cache(rig.index["ku"]).load({**rig.maps.by_name(), **self.maps.by_name()})
        stack.callback(self.program.close)
        self.ends = np.zeros(2, ENDS)
        for row, (client, vip, pod, version) in zip(
            self.ends,
            [("198.51.100.1", "10.96.0.10", "10.2.0.2", 4), ("2001:db8:1::1", "fd96::10", "fd02::2", 6)],
            strict=True,
        ):
            for name, text in (("client", client), ("vip", vip), ("pod", pod), ("seen", client)):
                row[name] = np.frombuffer(ip_address(text).packed.rjust(16, b"\0"), np.uint8)
            row["client_port"] = row["seen_port"] = 40000
            row["vip_port"], row["pod_port"], row["protocol"], row["family"] = 80, 8080, TCP, version
        self.generation = 0
        self.maps.lease((1 << 63) - 1)
        self.pairs = np.array([1, 2])
        self.renew()

    def renew(self) -> None:
        self.generation += 1
        self.maps.enter(self.pairs, np.full(2, self.generation, np.uint32), self.ends)
        self.maps.allow(self.pairs)

    def verdict(self, data: bytes, interface: str) -> int:
        index = self.rig.index[interface]
        return self.rig.run(lambda: self.program.test_run(MAC + data[6:], index)).verdict

    def came_by(self, pair: int = 1) -> int:
        """The interface that the row of replies has noted."""
        return int(self.maps.rows["came_by"][2 * pair + 1]) & 0xFFFFFFFF


@pytest.fixture(scope="module")
def cached(stack: ExitStack, rig: Rig) -> CacheRig:
    return CacheRig(stack, rig)


def reply(version: int = 4, flags: int = ACK) -> bytes:
    pod, client = ("10.2.0.2", "198.51.100.1") if version == 4 else ("fd02::2", "2001:db8:1::1")
    return frame(tcp(pod, client, 8080, 40000, b"x", flags=flags))


def request(version: int = 4, flags: int = ACK) -> bytes:
    client, vip = ("198.51.100.1", "10.96.0.10") if version == 4 else ("2001:db8:1::1", "fd96::10")
    return frame(tcp(client, vip, 40000, 80, b"x", flags=flags))


@pytest.mark.parametrize("version", [4, 6])
def test_the_cache_rewrites_replies_where_their_pod_is(cached: CacheRig, version: int) -> None:
    cached.renew()
    for _ in range(2):
        for interface in INTERFACES:
            expected = Verdict.REDIRECT if interface == "pod" else Verdict.NEXT
            assert cached.verdict(reply(version), interface) == expected, interface
            assert cached.verdict(request(version), interface) == Verdict.REDIRECT
        assert cached.came_by({4: 1, 6: 2}[version]) == cached.rig.index["pod"]


@pytest.mark.parametrize("flags", [RST, FIN | ACK, RST | ACK])
def test_a_forged_end_closes_nothing(cached: CacheRig, flags: int) -> None:
    cached.renew()
    before = cached.maps.stats().closed
    assert cached.verdict(reply(flags=flags), "uplink") == Verdict.NEXT
    assert cached.maps.stats().closed == before
    assert cached.verdict(reply(), "pod") == cached.verdict(request(), "uplink") == Verdict.REDIRECT
    assert cached.verdict(reply(flags=flags), "pod") == Verdict.NEXT
    assert cached.verdict(reply(), "pod") == cached.verdict(request(), "uplink") == Verdict.NEXT


def test_the_cache_follows_routes(cached: CacheRig) -> None:
    """At once where the pod is now; where it was, for as long as the kernel's word is believed."""
    cached.renew()
    assert cached.verdict(reply(), "pod") == Verdict.REDIRECT
    cached.rig.ip("route add 10.2.0.2 dev other")
    try:
        assert cached.verdict(reply(), "other") == Verdict.REDIRECT
        assert cached.came_by() == cached.rig.index["other"]
        assert cached.verdict(reply(), "pod") == Verdict.NEXT
    finally:
        cached.rig.ip("route del 10.2.0.2 dev other")
    # As if a moment had passed: the row's word is of another one, and the kernel is asked.
    rows = cached.maps.rows
    rows["came_by"][3] -= np.uint64(1 << 32)
    assert cached.verdict(reply(), "other") == Verdict.NEXT
    assert cached.verdict(reply(), "pod") == Verdict.REDIRECT


def test_a_row_that_is_used_again_knows_no_place(cached: CacheRig) -> None:
    cached.renew()
    assert cached.verdict(reply(), "pod") == Verdict.REDIRECT
    cached.renew()
    assert cached.came_by() == 0


def test_marks_decide_alone_in_the_cache_too(cached: CacheRig) -> None:
    cached.renew()
    rig = cached.rig
    rig.maps.interfaces.update({_u32(rig.index["uplink"]): _u32(1)})
    try:
        for bits, expected in ((ConfigBit.MARKED | ConfigBit.STRICT, (True, False)), (0, (True, True))):
            rig.maps.write_config(bits)
            got = tuple(cached.verdict(reply(), each) == Verdict.REDIRECT for each in ("uplink", "pod"))
            assert got == expected
    finally:
        rig.maps.interfaces.delete([_u32(rig.index["uplink"])])
        rig.maps.write_config(rig.writer._config)


def test_udp_has_the_same_place(cached: CacheRig) -> None:
    """What is not in the cache goes up, wherever it comes in."""
    data = frame(udp("10.2.0.2", "198.51.100.1", 8080, 40000, b"x"))
    assert cached.verdict(data, "pod") == cached.verdict(data, "uplink") == Verdict.NEXT
