"""Packets for two translators: every rule of RFC 7915 that can be told from outside, at its edges.

Four paths, two in each direction.  The addresses are such that a stateless translator with static maps and our
stateful one must write the same: an IPv4 client is its address behind the prefix, an IPv6 client the only address
of the pool, whose only port is the client's own.

    to-pod6    40.0.0.1    → 90.0.0.1           becomes    2001:db8:64::2800:1 → 2001::2
    from-pod6  2001::2     → 2001:db8:64::2800:1           90.0.0.1 → 40.0.0.1
    to-pod4    4000::1     → 9000::1                       192.0.0.1 → 10.0.0.1
    from-pod4  10.0.0.1    → 192.0.0.1                     9000::1 → 4000::1
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace

import packets
from packets import Datagram, echo, extension, icmp, ip_packet, other, sctp, tcp, udp

PREFIX = "2001:db8:64::/96"
MAPS = {"90.0.0.1": "2001::2", "10.0.0.1": "9000::1", "192.0.0.1": "4000::1"}
MTU = 1500
CLIENT_PORT, POD_PORT = 7000, 80
ETHERNET = 14
ROUTER = {4: "50.0.0.1", 6: "5000::1"}
# MSS 1460, SACK permitted, timestamps, no-operation, window scale 7
TCP_OPTIONS = bytes.fromhex("020405b40402080a000102030000000001030307")


@dataclass(frozen=True)
class Path:
    """One direction of one VIP's flows; `inside`: its packets come from a pod."""

    name: str
    source: str
    destination: str
    inside: bool

    @property
    def version(self) -> int:
        return 6 if ":" in self.source else 4

    @property
    def ports(self) -> tuple[int, int]:
        return (POD_PORT, CLIENT_PORT) if self.inside else (CLIENT_PORT, POD_PORT)

    def udp(self, data: bytes = b"hello", **how: bool) -> Datagram:
        return udp(self.source, self.destination, *self.ports, data, **how)

    def tcp(self, data: bytes = b"", **how: object) -> Datagram:
        return tcp(self.source, self.destination, *self.ports, data, **how)  # type: ignore[arg-type]

    def sctp(self) -> Datagram:
        return sctp(self.source, self.destination, *self.ports)

    def echo(self, data: bytes = b"odd") -> Datagram:
        """A client asks, a pod answers. The identifier is what a pool takes for a port."""
        return echo(self.source, self.destination, CLIENT_PORT, 3, data, reply=self.inside)

    def error(self, kind: int, code: int, rest: int, about: bytes, router: bool = False) -> Datagram:
        """From whoever `about` was sent to, or from a router on the way there."""
        source = ROUTER[self.version] if router else self.source
        return icmp(source, self.destination, kind, code, struct.pack(">I", rest) + about)


TO_POD6 = Path("to-pod6", "40.0.0.1", "90.0.0.1", False)
FROM_POD6 = Path("from-pod6", "2001::2", "2001:db8:64::2800:1", True)
TO_POD4 = Path("to-pod4", "4000::1", "9000::1", False)
FROM_POD4 = Path("from-pod4", "10.0.0.1", "192.0.0.1", True)
PATHS = (TO_POD6, FROM_POD6, TO_POD4, FROM_POD4)


@dataclass(frozen=True)
class Case:
    """IP packets that belong together, one after the other."""

    name: str
    path: Path
    packets: tuple[bytes, ...]


def cases() -> Iterator[Case]:
    """All of them; names begin with the path's."""
    for path in PATHS:
        for name, *given in _of(path):
            yield Case(f"{path.name} {name}", path, tuple(given))


def opening() -> Iterator[tuple[Path, bytes]]:
    """The clients' first packets, which make the flows that the other packets belong to."""
    for path in (TO_POD6, TO_POD4):
        for datagram in (path.udp(), path.tcp(), path.sctp(), path.echo()):
            yield path, ip_packet(datagram)


def _of(path: Path) -> Iterator[tuple[str | bytes, ...]]:
    yield from _transport(path)
    yield from _headers(path)
    yield from _sizes(path)
    yield from _fragments(path)
    yield from (_options(path) if path.version == 4 else _extensions(path))
    yield from (_errors4(path) if path.version == 4 else _errors6(path))
    yield from _odd_errors(path)


def _transport(path: Path) -> Iterator[tuple[str | bytes, ...]]:
    yield "tcp syn", ip_packet(path.tcp(options=TCP_OPTIONS))
    yield "tcp data", ip_packet(path.tcp(b"odd", flags=packets.PSH | packets.ACK, acknowledgement=77))
    yield "tcp rst", ip_packet(path.tcp(flags=packets.RST | packets.ACK, acknowledgement=77))
    yield "udp", ip_packet(path.udp())
    yield "udp empty", ip_packet(path.udp(b""))
    yield "echo", ip_packet(path.echo())
    yield "echo empty", ip_packet(path.echo(b""))
    yield "sctp", ip_packet(path.sctp())
    yield "gre", ip_packet(other(path.source, path.destination))
    damaged = path.tcp(b"data")
    yield "tcp damaged", ip_packet(replace(damaged, payload=damaged.payload[:-1] + b"\xff"))
    if path.version == 4:
        yield "udp without checksum", ip_packet(path.udp(no_checksum=True))
        yield "timestamp request", ip_packet(icmp(path.source, path.destination, 13, 0, bytes(16)))
    else:
        yield "multicast listener query", ip_packet(icmp(path.source, path.destination, 130, 0, bytes(20)))


def _headers(path: Path) -> Iterator[tuple[str | bytes, ...]]:
    for value in (0x01, 0x03, 0xB8, 0xFF):
        how = {"tos": value} if path.version == 4 else {"traffic_class": value}
        yield f"class {value:#04x}", ip_packet(path.udp(), **how)
    for ttl in (1, 2, 255):
        yield f"ttl {ttl}", ip_packet(path.udp(), ttl=ttl)
    if path.version == 6:
        yield "flow label 0", ip_packet(path.udp(), flow_label=0)


def _sizes(path: Path) -> Iterator[tuple[str | bytes, ...]]:
    """Total lengths around what becomes 1260 bytes of IPv4, 1280 of IPv6, and the links' 1500."""
    header = 20 if path.version == 4 else 40
    for size in (1259, 1260, 1261, 1279, 1280, 1281, 1480, 1481, 1499, 1500):
        datagram = path.udp(bytes(index % 251 for index in range(size - header - 8)))
        if path.version == 6:
            yield f"size {size}", ip_packet(datagram)
        else:
            yield f"size {size} df", ip_packet(datagram, dont_fragment=True)
            yield f"size {size}", ip_packet(datagram)


def _fragments(path: Path) -> Iterator[tuple[str | bytes, ...]]:
    def pieces(datagram: Datagram, size: int, **how: object) -> list[bytes]:
        return [each[ETHERNET:] for each in packets.fragments(datagram, size, **how)]  # type: ignore[arg-type]

    number = 0x5000 + PATHS.index(path) * 16  # each datagram has an identification of its own
    yield "udp fragments", *pieces(path.udp(bytes(range(200))), 80, identification=number)
    yield "tcp fragments", *pieces(path.tcp(bytes(range(200))), 80, identification=number + 1)
    yield "long fragments", *pieces(path.udp(bytes(range(256)) * 11), 1232, identification=number + 2)
    if path.version == 4:
        yield "df fragments", *pieces(path.udp(bytes(99)), 56, identification=number + 3, dont_fragment=True)
        yield "longest fragments", *pieces(path.udp(bytes(range(256)) * 11), 1480, identification=number + 4)
        first = pieces(path.udp(bytes(99), no_checksum=True), 56, identification=number + 5)[0]
        yield "first fragment without checksum", first
    else:
        yield "high identification", *pieces(path.udp(bytes(99)), 56, identification=0xABCD0000 + number + 6)
    yield "echo fragment", pieces(path.echo(bytes(99)), 56, identification=number + 7)[0]


def _options(path: Path) -> Iterator[tuple[str | bytes, ...]]:
    for name, text in (
        ("router alert", "94040000"),
        ("no operations", "01010100"),
        ("source route at its end", "830708010203 0400"),
        ("source route", "830704010203 0400"),
        ("strict source route", "890704010203 0400"),
    ):
        yield f"option {name}", ip_packet(path.udp(), options=bytes.fromhex(text))


def _extensions(path: Path) -> Iterator[tuple[str | bytes, ...]]:
    hop, end, route = (extension(kind) for kind in (packets.HOP_BY_HOP, packets.DESTINATION, packets.ROUTING))
    under_way = (packets.ROUTING, bytes([0, 2, 1, 0, 0, 0, 0]))  # type 2, one segment left
    atomic = packets.fragment_header(0, False, 0xBEEF)
    for name, chain in (
        ("hop-by-hop", [hop]),
        ("destination options", [end]),
        ("routing used up", [route]),
        ("routing under way", [under_way]),
        ("three", [hop, end, route]),
        ("atomic fragment", [atomic]),
    ):
        yield f"extension {name}", ip_packet(path.udp(), extensions=chain)


def _about(path: Path, datagram: Datagram | None = None, **how: object) -> bytes:
    """What was sent to the path's source, and had come some way."""
    towards = replace(path, source=path.destination, destination=path.source, inside=not path.inside)
    if path.version == 6:
        how = {"flow_label": 0} | how  # as a translator, or a host, sends it
    return ip_packet(towards.udp() if datagram is None else datagram, ttl=60, **how)


def _errors4(path: Path) -> Iterator[tuple[str | bytes, ...]]:
    """RFC 7915 section 4.2: every type and code."""
    about = _about(path)
    rows = [(3, code, 0) for code in range(16) if code != 4]
    rows += [(3, 4, mtu) for mtu in (0, 500, 1259, 1260, 1400, 1480, 1500)]
    rows += [(4, 0, 0), (5, 1, 0x0A000001), (11, 0, 0), (11, 1, 0), (12, 1, 0), (12, 2, 0)]
    rows += [(12, 0, pointer << 24) for pointer in range(21)]
    for kind, code, rest in rows:
        yield f"error {kind}/{code} {rest:#x}", ip_packet(path.error(kind, code, rest, about))
    # The router's plateau is that of the packet that was too long (RFC 1191).
    long = _about(
        path,
        replace(path, source=path.destination, destination=path.source, inside=not path.inside).udp(
            bytes(1400)
        ),
    )
    yield "error 3/4 0x0 long", ip_packet(path.error(3, 4, 0, long[:528]))


def _errors6(path: Path) -> Iterator[tuple[str | bytes, ...]]:
    """RFC 7915 section 5.2: every type and code."""
    about = _about(path)
    rows = [(1, code, 0) for code in range(8)]
    rows += [(2, 0, mtu) for mtu in (1280, 1400, 1500, 9000)]
    rows += [(3, 0, 0), (3, 1, 0), (4, 1, 6), (4, 2, 48)]
    rows += [(4, 0, pointer) for pointer in range(42)]
    for kind, code, rest in rows:
        yield f"error {kind}/{code} {rest:#x}", ip_packet(path.error(kind, code, rest, about))


def _odd_errors(path: Path) -> Iterator[tuple[str | bytes, ...]]:
    kind, code = (3, 3) if path.version == 4 else (1, 4)
    back = replace(path, source=path.destination, destination=path.source, inside=not path.inside)
    if path.version == 4:
        yield "error by a router", ip_packet(path.error(11, 0, 0, _about(path), router=True))
    else:
        yield "error by a router", ip_packet(path.error(3, 0, 0, _about(path), router=True))
    yield "error about tcp", ip_packet(path.error(kind, code, 0, _about(path, back.tcp(options=TCP_OPTIONS))))
    short = (20 if path.version == 4 else 40) + 8
    yield "error about tcp, 8 bytes", ip_packet(path.error(kind, code, 0, _about(path, back.tcp())[:short]))
    yield "error about echo", ip_packet(path.error(kind, code, 0, _about(path, back.echo())))
    yield (
        "error about an error",
        ip_packet(path.error(kind, code, 0, _about(path, back.error(kind, code, 0, _about(back))))),
    )
    damaged = path.error(kind, code, 0, _about(path))
    yield "error damaged", ip_packet(replace(damaged, payload=damaged.payload[:-1] + b"\xff"))
    yield "error ttl 1", ip_packet(path.error(kind, code, 0, _about(path)), ttl=1)
    long = _about(path, back.udp(bytes(1400)))
    yield (
        "error about much",
        ip_packet(path.error(kind, code, 0, long[: 1452 if path.version == 6 else 1472])),
    )
