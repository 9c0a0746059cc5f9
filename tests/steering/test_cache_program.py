"""The flow cache's program beside the reference: it rewrites as the user-space path would have, byte for byte.

Both see every frame.  What the program lets go up may change the reference's flows; what it rewrites must not differ.
Which frames it may rewrite says `may_be_rewritten`, in plain Python, and it rewrites all of those.
"""

from __future__ import annotations

import os
import re
import struct
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from random import Random

import numpy as np
import pytest

import packets
from kuproxy.codes import FlowState, Outcome
from kuproxy.reference import LiveFlow, Reference, RefPacket
from kuproxy.steering.bpf import LoadedProgram, Verdict
from kuproxy.steering.cache_layout import CHOICE, LEASE_ROW, SHORTCUT_ROW, Way
from kuproxy.steering.cache_maps import ENDS, CacheMaps
from kuproxy.steering.cache_program import cache
from kuproxy.steering.keys import ConfigBit
from kuproxy.steering.links import KU0_MAC
from kuproxy.steering.maps import SteeringMaps
from kuproxy.steering.targets import MapWriter
from packets import ACK, FIN, PSH, RST, SYN, URG, Datagram, frame, tcp, udp
from reference.worlds import send, vip, world

pytestmark = pytest.mark.netns  # loading a program needs the same privilege

FRAMES = int(os.environ.get("KU_TEST_CACHED_FRAMES", "20000"))
FOREVER = (1 << 63) - 1
NODE_MAC = bytes(6)  # of the loopback interface, where programs are tried
MAC = bytes.fromhex(KU0_MAC.replace(":", ""))
MACS = bytes.fromhex("0a0b0c0d0e0f") + bytes.fromhex("0a0b0c0d0e0e")  # of a pod and of its veth
CLIENTS = {4: ["198.51.100.1", "10.2.0.2"], 6: ["2001:db8::7", "fd02::2"]}  # the second of each is a pod


def reference() -> Reference:
    """VIPs of both families: plain, with other ports at the pods, masquerading, with node ports, and a hairpin."""
    pods = {4: ["10.2.0.2:8080", "10.2.0.3:8080"], 6: ["[fd02::2]:8080", "[fd02::3]:8080"]}
    vips = []
    for version, prefix in ((4, "10.96.0."), (6, "fd96::")):
        mask = 32 if version == 4 else 128
        vips += [
            vip(f"{prefix}1/{mask}", pods[version], protocol="tcp", port=80, node_port=30080 + version),
            vip(f"{prefix}1/{mask}", pods[version], protocol="udp", port=53),
            vip(f"{prefix}2/{mask}", pods[version], protocol="tcp", port=443, masquerade=True),
            vip(f"{prefix}2/{mask}", pods[version], protocol="udp", port=443, masquerade=True),
            vip(f"{prefix}3/{mask}", [each.removesuffix(":8080").strip("[]") for each in pods[version]]),
        ]
    made = world(
        *vips,
        decrement_ttl=False,
        masquerade=[packets.ip_address("192.0.2.1"), packets.ip_address("2001:db8::1")],
        node_addresses=[packets.ip_address("192.0.2.1"), packets.ip_address("2001:db8::1")],
        any_node_address=False,
        timeout_ticks=1 << 20,
    )
    made.mark_interface(0, True, True)
    return made


def begin(made: Reference) -> None:
    """Flows of every kind, established."""
    for version in (4, 6):
        prefix, node = ("10.96.0.", "192.0.2.1") if version == 4 else ("fd96::", "2001:db8::1")
        for number, client in enumerate(CLIENTS[version]):
            for port in range(4):
                source = 40000 + 100 * number + port
                asked = [
                    tcp(client, f"{prefix}1", source, 80),
                    tcp(client, f"{prefix}2", source, 443),
                    tcp(client, node, source, 30080 + version),
                    udp(client, f"{prefix}1", source, 53),
                    udp(client, f"{prefix}2", source, 443),
                    udp(client, f"{prefix}3", source, 80),
                ]
                for datagram in asked:
                    result = send(made, frame(datagram))
                    assert result.outcome is Outcome.TRANSMIT
                    if datagram.protocol == packets.TCP:
                        answer = packets.reply_to(result.data)
                        assert send(made, answer).outcome is Outcome.TRANSMIT
                        ack = tcp(*_ends(datagram), flags=ACK)
                        assert send(made, frame(ack)).outcome is Outcome.TRANSMIT


def _ends(datagram: Datagram) -> tuple[str, str, int, int]:
    ports = struct.unpack_from(">HH", datagram.payload)
    return str(datagram.source), str(datagram.destination), *ports


def ends_of(flow: LiveFlow) -> np.ndarray:
    ends = np.zeros(1, ENDS)
    for name, address in (
        ("client", flow.client), ("vip", flow.address), ("pod", flow.pod), ("seen", flow.source),
    ):  # fmt: skip
        ends[name] = np.frombuffer(address.packed.rjust(16, b"\0"), np.uint8)
    ends["client_port"], ends["vip_port"] = flow.client_port, flow.port
    ends["pod_port"], ends["seen_port"] = flow.pod_port, flow.source_port
    ends["protocol"], ends["family"] = flow.protocol, flow.client.version
    return ends


class Rig:
    """The program with its maps, a reference with flows, and the flows in the cache."""

    def __init__(self, stack: ExitStack, ipv6: bool = True, shortcuts: bool = True) -> None:
        self.steering = SteeringMaps()
        stack.callback(self.steering.close)
        self.writer = MapWriter(self.steering)
        self.maps = CacheMaps(1024)
        stack.callback(self.maps.close)
        built = cache(1, ipv6, shortcuts)
        self.program: LoadedProgram = built.load({**self.steering.by_name(), **self.maps.by_name()})
        stack.callback(self.program.close)
        self.reference = reference()
        begin(self.reference)
        self.maps.lease(FOREVER)
        self.maps.lease_shortcuts(FOREVER)
        self.generation = 0
        self.flows: list[LiveFlow] = []
        self.closed: set[int] = set()
        self.renew()

    def renew(self, begin_anew: bool = False) -> None:
        """Enter every flow of the reference's that may be cached, as user space does; or of another reference's."""
        if begin_anew:
            self.reference = reference()
            begin(self.reference)
        if self.generation:
            everything = np.arange(1, len(self.flows) + 1)
            keys = self.maps.keys_of(everything)
            self.maps.forbid(everything)
            self.maps.erase(keys)
            self.maps.fence()
        self.generation += 1
        established = (FlowState.TCP_ESTABLISHED, FlowState.UDP)
        flows = [each for each in self.reference.live_flows(0) if each.state in established]
        self.flows = flows[: self.maps.pairs]  # damaged packets begin flows, too
        self.closed = set()
        pairs = np.arange(1, len(self.flows) + 1)
        ends = np.concatenate([ends_of(each) for each in self.flows])
        self.keys = self.maps.keys(ends)
        self.maps.enter(pairs, np.full(len(pairs), self.generation, np.uint32), ends)
        self.by_key = {key.tobytes(): index for index, key in enumerate(self.keys.reshape(-1))}
        self.maps.allow(pairs)

    def choose(self, rng: Random) -> None:
        """Give rows ways and MTUs."""
        for row in range(2, 2 * (len(self.flows) + 1)):
            mtu = rng.choice((0, 100, 1000, 1500, 65535))
            self.set_way(row, Way(rng.randrange(3)), mtu)

    def set_way(self, row: int, way: Way, mtu: int = 1500) -> None:
        chosen = np.zeros(1, CHOICE)
        chosen["way"], chosen["mtu"], chosen["ifindex"] = int(way), mtu, 7
        chosen["macs"], chosen["next_hop"] = np.frombuffer(MACS, np.uint8), 2
        self.maps.choose(np.array([row]), chosen)

    def way_of(self, row: int, length: int) -> Way:
        """Of a packet of so many bytes, in plain words."""
        way, mtu = (int(self.maps.rows[name][row]) for name in ("way", "mtu"))
        return Way(way) if length <= mtu else Way.ROUTE

    def run(self, data: bytes, gso_size: int = 0) -> tuple[int, bytes]:
        """Verdict, and the frame with the Ethernet destination that it came with; what happened to that is noted."""
        ran = self.program.test_run(NODE_MAC + data[6:], gso_size=gso_size)
        macs = {MAC + data[6:12]: Way.ROUTE, MACS: Way.PEER, NODE_MAC + data[6:12]: Way.NEIGHBOUR}
        self.way = macs[ran.frame[:12]]
        return ran.verdict, data[:12] + ran.frame[12:]


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    with ExitStack() as stack:
        yield Rig(stack)


def with_checksum(source: object, destination: object, *ports: int, wanted: int) -> Datagram:
    """A datagram whose checksum is so."""
    ends = (str(source), str(destination), *ports)
    zero = udp(*ends, bytes(2))
    made = udp(*ends, struct.pack(">H", (struct.unpack_from(">H", zero.payload, 6)[0] - wanted) % 0xFFFF))
    assert struct.unpack_from(">H", made.payload, 6)[0] == wanted
    return made


def packet_of(rng: Random, flow: LiveFlow, returning: bool, **how: object) -> Datagram:
    """Some segment or datagram of a flow, as it comes in."""
    ends = (
        (flow.pod, flow.source, flow.pod_port, flow.source_port)
        if returning
        else (flow.client, flow.address, flow.client_port, flow.port)
    )
    data = rng.randbytes(rng.choice((0, 1, 2, 3, 8, 100, 101, 1400)))
    if flow.protocol == packets.TCP:
        flags = rng.choice((ACK, ACK | PSH, ACK | URG | PSH, ACK))
        if rng.random() < 0.02:
            flags = rng.choice((SYN, SYN | ACK, FIN | ACK, RST, RST | ACK))
        options = rng.choice((b"", bytes([1, 1, 8, 10]) + rng.randbytes(8)))
        return tcp(*ends, data, flags=flags, sequence=rng.getrandbits(32), options=options)
    if rng.random() < 0.1:  # its checksum is zero, on the way in or out
        return udp(*ends, data, no_checksum=flow.client.version == 4)
    if rng.random() < 0.02:
        return with_checksum(*ends, wanted=rng.choice((1, 0xFFFE, 0xFFFF)))
    return udp(*ends, data)


def some_frame(rng: Random, flow: LiveFlow) -> bytes:
    """Of a flow, most of them as they should be."""
    datagram = packet_of(rng, flow, rng.random() < 0.5)
    how: dict[str, object] = {"ttl": rng.choice((64, 64, 255, 3, 2, 1, 0))}
    kind = rng.random()
    six = flow.client.version == 6
    if kind < 0.05 and not six:
        how["options"] = bytes(4)
    elif kind < 0.05:
        how["extensions"] = [packets.extension(packets.DESTINATION)]
    elif kind < 0.1 and not six:
        how |= {"more": True} if rng.random() < 0.5 else {"offset": 8}
    elif kind < 0.1:
        how["extensions"] = [packets.fragment_header(rng.choice((0, 8)), rng.random() < 0.5, 7)]
    if not six and rng.random() < 0.5:
        how |= {"dont_fragment": True, "tos": rng.getrandbits(8)}
    data = bytearray(frame(datagram, pad_to=rng.choice((0, 60, 1514)), **how))
    if rng.random() < 0.05:  # any byte behind the addresses of the link, or an end before the end
        data[rng.randrange(14, min(len(data), 80))] ^= 1 << rng.randrange(8)
    elif rng.random() < 0.02:
        # The kernel tries programs only over frames that hold the IP header.
        del data[rng.randrange(54 if six else 34, len(data)) :]
    if kind > 0.97:  # a checksum that was wrong before stays wrong
        data[rng.randrange(34, len(data)) if len(data) > 34 else -1] ^= 0xFF
    return bytes(data)


def key_and_shape(data: bytes) -> tuple[bytes, bool, bool, int] | None:
    """Five-tuple, whether TCP's flags close, whether it may be rewritten, its IP length; None: nothing of that."""
    kind, ip = data[12:14], data[14:]
    if kind == b"\x08\x00" and len(ip) >= 20 and ip[0] >> 4 == 4 and ip[0] & 15 >= 5:
        start, total, protocol = (ip[0] & 15) * 4, struct.unpack_from(">H", ip, 2)[0], ip[9]
        pieces = struct.unpack_from(">H", ip, 6)[0]
        if pieces & 0x1FFF:
            return None
        plain = ip[0] == 0x45 and not pieces & 0x2000 and ip[8] > 1
        addresses, family = bytes(12) + ip[12:16] + bytes(12) + ip[16:20], 0
    elif kind == b"\x86\xdd" and len(ip) >= 40 and ip[0] >> 4 == 6:
        start, total, protocol = 40, 40 + struct.unpack_from(">H", ip, 4)[0], ip[6]
        plain, addresses, family = total > 40 and ip[7] > 1, ip[8:40], 2
        for _ in range(8):
            if protocol not in (0, 43, 44, 60):
                break
            if len(ip) < start + 8 or (protocol == 44 and struct.unpack_from(">H", ip, start + 2)[0] & 0xFFF8):
                return None
            size = 8 if protocol == 44 else 8 * ip[start + 1] + 8
            protocol, start, plain = ip[start], start + size, False
    else:
        return None
    plain = plain and total <= len(ip)
    if protocol == packets.TCP and len(ip) >= start + 16:
        length, closes = (ip[start + 12] >> 4) * 4, bool(ip[start + 13] & 7)
        plain = plain and length >= 20 and total - start >= length
    elif protocol == packets.UDP and len(ip) >= start + 8:
        length, closes = struct.unpack_from(">H", ip, start + 4)[0], False
        plain = plain and length >= 8 and total - start >= length
    else:
        return None
    return addresses + ip[start : start + 4] + bytes([protocol, family, 0, 0]), closes, plain, total


def one_hop_on(data: bytes) -> bytes:
    """A frame as a router sends it on: a lower TTL, and in IPv4 the checksum that belongs to it (RFC 1141)."""
    changed = bytearray(data)
    if data[12:14] == b"\x86\xdd":
        changed[21] -= 1
        return bytes(changed)
    changed[22] -= 1
    (before,) = struct.unpack_from(">H", data, 24)
    total = (~before & 0xFFFF) + (~(data[22] << 8) & 0xFFFF) + (changed[22] << 8)
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    struct.pack_into(">H", changed, 24, ~total & 0xFFFF)
    return bytes(changed)


def test_rewrites_what_the_reference_would_send(rig: Rig) -> None:
    rng = Random(6)
    rig.renew(begin_anew=True)
    rig.choose(rng)
    seen: Counter[str] = Counter()
    tallied: Counter[int] = Counter()
    for turn in range(FRAMES):
        if turn % 997 == 996:
            rig.renew(begin_anew=True)
            rig.choose(rng)
        data = some_frame(rng, rng.choice(rig.flows))
        shape = key_and_shape(data)
        row = rig.by_key.get(shape[0]) if shape is not None else None
        verdict, sent = rig.run(data)
        expected = False
        if shape is not None and row is not None:
            if shape[1]:
                rig.closed.add(row // 2)
            expected = shape[2] and row // 2 not in rig.closed
            tallied[shape[3]] += expected
        assert (verdict == Verdict.REDIRECT) is expected, (turn, data.hex())
        result = rig.reference.receive([RefPacket(data)], 0)[0]
        if not expected:
            assert (verdict, sent) == (Verdict.NEXT, data)
            seen[f"up, {result.outcome.name}"] += 1
        elif result.outcome is Outcome.DROP:
            # The kernel's own input drops it behind us, or the pod's, or the next hop: it stays as damaged as it was.
            assert result.reason.name == "BAD_IPV4_CHECKSUM"
            came, went = (sum(struct.unpack_from(">10H", each, 14)) % 0xFFFF for each in (data, sent))
            assert came == went
            seen["damaged header"] += 1
        else:
            assert result.outcome is Outcome.TRANSMIT, (turn, result.reason.name, data.hex())
            way = rig.way_of(row + 2, shape[3])
            assert rig.way is way, (turn, data.hex())
            wanted = result.data if way is Way.ROUTE else one_hop_on(result.data)
            assert sent == wanted, (turn, way, data.hex(), sent.hex(), wanted.hex())
            seen[way.name] += 1
            seen[f"{'v6' if shape[0][37] else 'v4'} {shape[0][36]} {'back' if row % 2 else 'there'}"] += 1
    kinds = {f"{v} {p} {way}" for v in ("v4", "v6") for p in (6, 17) for way in ("there", "back")}
    assert all(seen[kind] > FRAMES // 50 for kind in (*kinds, *(way.name for way in Way))), seen
    assert seen["up, TRANSMIT"] > FRAMES // 50 and seen["damaged header"], seen
    assert rig.maps.stats().hits >= sum(tallied.values()) and rig.maps.stats().failed == 0


def established(rig: Rig, protocol: int, version: int = 4) -> tuple[int, LiveFlow]:
    """(pair, flow) of one in the cache."""
    return next(
        (index + 1, flow)
        for index, flow in enumerate(rig.flows)
        if flow.protocol == protocol and flow.client.version == version
    )


def there(flow: LiveFlow, **how: object) -> bytes:
    build = tcp if flow.protocol == packets.TCP else udp
    flags = {"flags": ACK} if flow.protocol == packets.TCP else {}
    return frame(build(flow.client, flow.address, flow.client_port, flow.port, b"x", **(flags | how)))


def back(flow: LiveFlow, **how: object) -> bytes:
    build = tcp if flow.protocol == packets.TCP else udp
    flags = {"flags": ACK} if flow.protocol == packets.TCP else {}
    return frame(build(flow.pod, flow.source, flow.pod_port, flow.source_port, b"x", **(flags | how)))


@pytest.mark.parametrize("flags", [SYN, SYN | ACK, FIN | ACK, RST, RST | ACK])
@pytest.mark.parametrize("way", [there, back])
@pytest.mark.parametrize("version", [4, 6])
def test_syn_fin_and_rst_close_both_directions_at_once(rig: Rig, flags: int, way: object, version: int) -> None:
    rig.renew()
    _, flow = established(rig, packets.TCP, version)
    assert [rig.run(each)[0] for each in (there(flow), back(flow))] == [Verdict.REDIRECT] * 2
    before = rig.maps.stats().closed
    assert rig.run(way(flow, flags=flags))[0] == Verdict.NEXT  # type: ignore[operator]
    assert [rig.run(each)[0] for each in (there(flow), back(flow))] == [Verdict.NEXT] * 2
    assert rig.maps.stats().closed == before + 1


def test_a_syn_in_a_first_fragment_or_behind_options_closes_too(rig: Rig) -> None:
    for how in ({"more": True}, {"options": bytes(4)}, {"ttl": 1}):
        rig.renew()
        _, flow = established(rig, packets.TCP)
        syn = tcp(flow.client, flow.address, flow.client_port, flow.port)
        assert rig.run(frame(syn, **how))[0] == Verdict.NEXT
        assert rig.run(there(flow))[0] == Verdict.NEXT


@pytest.mark.parametrize(
    "extensions",
    [
        [packets.extension(packets.DESTINATION)],
        [packets.extension(packets.HOP_BY_HOP), packets.extension(packets.ROUTING)],
        [packets.fragment_header(0, False, 7)],
        [packets.fragment_header(0, True, 7)],
        [packets.extension(packets.DESTINATION, bytes(14))] * 8,
    ],
)
@pytest.mark.parametrize("flags", [SYN, FIN | ACK, RST])
def test_a_syn_behind_extension_headers_closes_too(
    rig: Rig, extensions: list[tuple[int, bytes]], flags: int
) -> None:
    rig.renew()
    _, flow = established(rig, packets.TCP, 6)
    ends = (flow.client, flow.address, flow.client_port, flow.port)
    assert rig.run(frame(tcp(*ends, flags=ACK), extensions=extensions))[0] == Verdict.NEXT
    assert rig.run(there(flow))[0] == rig.run(back(flow))[0] == Verdict.REDIRECT
    before = rig.maps.stats().closed
    assert rig.run(frame(tcp(*ends, flags=flags), extensions=extensions))[0] == Verdict.NEXT
    assert rig.maps.stats().closed == before + 1
    assert rig.run(there(flow))[0] == rig.run(back(flow))[0] == Verdict.NEXT


def test_what_no_worker_reads_does_not_close(rig: Rig) -> None:
    """Nine extension headers are one more than a worker walks over; later fragments have no ports."""
    rig.renew()
    _, flow = established(rig, packets.TCP, 6)
    syn = tcp(flow.client, flow.address, flow.client_port, flow.port)
    for extensions in ([packets.extension(packets.DESTINATION)] * 9, [packets.fragment_header(8, False, 7)]):
        data = frame(syn, extensions=extensions)
        assert rig.run(data)[0] == Verdict.NEXT
        assert send(rig.reference, data).outcome is not Outcome.TRANSMIT
        assert rig.run(there(flow))[0] == Verdict.REDIRECT


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("way", [Way.NEIGHBOUR, Way.PEER])
def test_shortcuts_are_taken_while_their_lease_lasts(rig: Rig, version: int, way: Way) -> None:
    rig.renew()
    pair, flow = established(rig, packets.UDP, version)
    rig.set_way(2 * pair, way)
    data = there(flow)
    routed = send(rig.reference, data).data
    try:
        for lease, taken in ((FOREVER, way), (1, Way.ROUTE), (0, Way.ROUTE), (FOREVER, way)):
            rig.maps.lease_shortcuts(lease)
            verdict, sent = rig.run(data)
            assert (verdict, rig.way) == (Verdict.REDIRECT, taken)
            assert sent == (routed if taken is Way.ROUTE else one_hop_on(routed))
        assert rig.maps.rows["last_seen_ns"][SHORTCUT_ROW] == FOREVER
    finally:
        rig.maps.lease_shortcuts(FOREVER)


def test_of_a_frame_of_segments_each_must_fit(rig: Rig) -> None:
    """Not longer than the MTU itself, or made of segments that are not."""
    rig.renew()
    for protocol, version, header in ((packets.TCP, 4, 40), (packets.TCP, 6, 60), (packets.UDP, 4, 28)):
        pair, flow = established(rig, protocol, version)
        build = tcp if protocol == packets.TCP else udp
        flags = {"flags": ACK} if protocol == packets.TCP else {}
        data = frame(build(flow.client, flow.address, flow.client_port, flow.port, bytes(3000), **flags))
        for mtu, size, taken in (
            (3000 + header, 0, Way.PEER),
            (2999 + header, 0, Way.ROUTE),
            (1000 + header, 1000, Way.PEER),
            (1000 + header, 1001, Way.ROUTE),
        ):
            rig.set_way(2 * pair, Way.PEER, mtu)
            assert rig.run(data, gso_size=size)[0] == Verdict.REDIRECT
            assert rig.way is taken, (protocol, version, mtu, size)


def test_a_program_without_shortcuts_takes_none() -> None:
    with ExitStack() as stack:
        rig = Rig(stack, shortcuts=False)
        pair, flow = established(rig, packets.UDP)
        rig.set_way(2 * pair, Way.PEER)
        assert rig.run(there(flow))[0] == Verdict.REDIRECT
        assert rig.way is Way.ROUTE


def test_an_armed_row_rewrites_nothing_and_can_be_closed(rig: Rig) -> None:
    rig.renew()
    pair, flow = established(rig, packets.TCP)
    rig.maps.rows["live"][[2 * pair, 2 * pair + 1]] = 0
    assert rig.run(there(flow))[0] == Verdict.NEXT
    assert rig.run(back(flow, flags=FIN | ACK))[0] == Verdict.NEXT
    rig.maps.allow(np.array([pair]))
    assert rig.run(there(flow))[0] == Verdict.NEXT


@pytest.mark.parametrize("way", [there, back])
def test_forbidding_is_one_store(rig: Rig, way: object) -> None:
    """The entry is still there; that its row bears another generation is enough."""
    rig.renew()
    pair, flow = established(rig, packets.UDP)
    assert rig.run(way(flow))[0] == Verdict.REDIRECT  # type: ignore[operator]
    rig.maps.forbid(np.array([pair]))
    assert rig.run(way(flow))[0] == Verdict.NEXT  # type: ignore[operator]


def test_a_late_entry_does_not_revive_a_row(rig: Rig) -> None:
    """The row belongs to another flow, of a later generation: an entry of the former one counts for nothing."""
    rig.renew()
    (pair, old), others = established(rig, packets.UDP), rig.flows
    rig.maps.forbid(np.array([pair]))
    new = next(each for each in others if each.protocol == packets.UDP and each != old and each.pod != old.pod)
    index = others.index(new) + 1
    rig.maps.forbid(np.array([index]))
    rig.maps.erase(rig.maps.keys_of(np.array([index])))
    rig.maps.enter(np.array([pair]), np.array([rig.generation + 1], np.uint32), ends_of(new))
    rig.maps.allow(np.array([pair]))
    assert rig.run(there(new))[0] == Verdict.REDIRECT
    assert rig.run(there(old))[0] == Verdict.NEXT
    rig.maps.erase(rig.keys.reshape(-1))
    rig.maps.fence()
    rig.maps.rows["armed"][2:], rig.maps.rows["live"][2:] = 0, 0
    rig.generation += 1
    rig.flows = []
    rig.renew()


def test_without_a_lease_nothing_is_rewritten_but_closings_are_noted(rig: Rig) -> None:
    rig.renew()
    _, flow = established(rig, packets.TCP)
    before = rig.maps.stats()
    for lease in (0, 1):
        rig.maps.lease(lease)
        assert rig.run(there(flow))[0] == Verdict.NEXT
    assert rig.maps.stats().lapsed == before.lapsed + 2
    rig.run(there(flow, flags=FIN | ACK))
    rig.maps.lease(FOREVER)
    assert rig.run(there(flow))[0] == Verdict.NEXT
    assert rig.maps.rows["last_seen_ns"][LEASE_ROW] == FOREVER


def test_replies_count_where_their_interface_is_marked(rig: Rig) -> None:
    rig.renew()
    flows = {version: established(rig, packets.UDP, version)[1] for version in (4, 6)}
    rig.writer.set_config(ConfigBit.MARKED, True)
    try:
        for marks in (None, 0, 1, 2, 3):
            if marks is not None:
                rig.steering.interfaces.update({struct.pack("=I", 1): struct.pack("=I", marks)})
            for version, bit in ((4, 1), (6, 2)):
                assert rig.run(there(flows[version]))[0] == Verdict.REDIRECT
                wanted = Verdict.REDIRECT if (marks or 0) & bit else Verdict.NEXT
                assert rig.run(back(flows[version]))[0] == wanted, (marks, version)
    finally:
        rig.writer.set_config(ConfigBit.MARKED, False)
        rig.steering.interfaces.delete([struct.pack("=I", 1)])


def test_rows_count_packets_and_bytes_as_received(rig: Rig) -> None:
    rig.renew()
    pair, flow = established(rig, packets.UDP, 6)
    before = rig.maps.rows[[2 * pair, 2 * pair + 1]].copy()
    for _ in range(3):
        rig.run(there(flow))
    rig.run(back(flow))
    after = rig.maps.rows[[2 * pair, 2 * pair + 1]]
    assert (after["packets"] - before["packets"]).tolist() == [3, 1]
    assert (after["bytes"] - before["bytes"]).tolist() == [3 * 49, 49]
    assert (after["last_seen_ns"] > 0).all()


def test_frames_for_others_and_vlans_go_on(rig: Rig) -> None:
    rig.renew()
    _, flow = established(rig, packets.UDP)
    data = there(flow)
    assert rig.program.test_run(bytes.fromhex("02aabbccddee") + data[6:]).verdict == Verdict.NEXT
    tagged = data[:12] + bytes.fromhex("81000007") + data[12:]
    assert rig.run(tagged)[0] == Verdict.NEXT


def test_without_ipv6_sums_only_ipv4_is_rewritten() -> None:
    with ExitStack() as stack:
        rig = Rig(stack, ipv6=False)
        for version, verdict in ((4, Verdict.REDIRECT), (6, Verdict.NEXT)):
            _, flow = established(rig, packets.UDP, version)
            assert rig.run(there(flow))[0] == verdict


def test_helpers_are_older_than_tcx_and_written_down() -> None:
    needs = cache(1, shortcuts=True).needs
    for version in needs.values():
        assert tuple(map(int, version.split("."))) <= (6, 6)
    page = (Path(__file__).parents[2] / "docs" / "flow-cache.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| ([\d.]+) \|$", page, re.MULTILINE)
    assert rows == sorted(needs.items())


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("returning", [False, True])
def test_a_udp_checksum_that_becomes_zero_is_sent_as_ones(rig: Rig, version: int, returning: bool) -> None:
    """RFC 768, RFC 8200 section 8.1; of all flows of a family, so that addresses alone or ports too change."""
    rig.renew()
    for flow in rig.flows:
        if flow.protocol != packets.UDP or flow.client.version != version:
            continue
        to_pod = (flow.source, flow.pod, flow.source_port, flow.pod_port)
        to_client = (flow.address, flow.client, flow.port, flow.client_port)
        from_client = (flow.client, flow.address, flow.client_port, flow.port)
        from_pod = (flow.pod, flow.source, flow.pod_port, flow.source_port)
        goes, comes = (to_client, from_pod) if returning else (to_pod, from_client)
        data = frame(udp(*comes, with_checksum(*goes, wanted=0xFFFF).payload[8:]))
        verdict, sent = rig.run(data)
        assert verdict == Verdict.REDIRECT
        assert sent == send(rig.reference, data).data
        at = 40 if version == 4 else 60
        assert sent[at : at + 2] == b"\xff\xff"
