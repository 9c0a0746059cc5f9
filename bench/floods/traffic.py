"""The floods, as rows of 64-byte IPv4 frames, whole arrays at a time; and the established flows that they meet."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import ip_address

import numpy as np

from bench.floods.collide import colliding
from bench.loops import ROW
from bench.traffic import _MACS, CLIENT4, POD4, POD_PORT, VIP4, VIP_PORT, _checksum, _put, _sum16

TCP, UDP, ICMP = 6, 17, 1
FIN, SYN, ACK = 0x01, 0x02, 0x10
OUTSIDE, INSIDE = 0, 1
VIP = VIP4 + 1
NODE = int(ip_address("192.0.2.1"))
NODE_PORT = 30080
ATTACKER = int(ip_address("41.0.0.1"))
DENIED = int(ip_address("100.64.0.0"))  # 2^22 addresses
_DONT_FRAGMENT, _MORE = 0x4000, 0x2000

Numbers = np.ndarray | int


@dataclass(frozen=True)
class Aim:
    """Whom a flood is sent to, and in whose name; addresses are numbers."""

    vip: int = VIP
    tcp_port: int = VIP_PORT
    udp_port: int = VIP_PORT
    node: int = NODE  # with a node port that clients from outside are denied
    node_port: int = NODE_PORT
    pod: int = POD4 + 1
    pods: int = 64  # how many addresses follow
    pod_port: int = POD_PORT
    client: int = CLIENT4  # one with established flows


_MEMORY = Aim()  # that of the benchmark in memory


@dataclass(frozen=True)
class Traffic:
    """Rows (uint8[n, ROW]) and where each comes in (uint16[n])."""

    rows: np.ndarray
    interfaces: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)


def _ipv4(
    count: int, protocol: int, source: Numbers, destination: Numbers, ttl: int = 64, fragment: Numbers = 0,
    identification: Numbers = 0,
) -> np.ndarray:  # fmt: skip
    rows = np.zeros((count, ROW), np.uint8)
    rows[:, :12] = np.frombuffer(_MACS, np.uint8)
    _put(rows, 12, 2, 0x0800)
    rows[:, 14], rows[:, 22], rows[:, 23] = 0x45, ttl, protocol
    _put(rows, 16, 2, ROW - 14)
    _put(rows, 18, 2, identification)
    _put(rows, 20, 2, fragment)
    _put(rows, 26, 4, source)
    _put(rows, 30, 4, destination)
    _put(rows, 24, 2, _checksum(_sum16(rows, 14, 34)))
    return rows


def _finish(rows: np.ndarray, protocol: int, checksum_at: int) -> np.ndarray:
    pseudo = 0 if protocol == ICMP else _sum16(rows, 26, 34) + protocol + ROW - 34
    checksum = _checksum(pseudo + _sum16(rows, 34, ROW))
    _put(rows, checksum_at, 2, np.where((checksum == 0) & (protocol == UDP), 0xFFFF, checksum))
    return rows


def tcp(
    source: Numbers, port: Numbers, to: Numbers, to_port: Numbers, flags: int, count: int, ttl: int = 64
) -> np.ndarray:
    """Segments with ten bytes of data."""
    rows = _ipv4(count, TCP, source, to, ttl, _DONT_FRAGMENT)
    _put(rows, 34, 2, port)
    _put(rows, 36, 2, to_port)
    rows[:, 46], rows[:, 47] = 0x50, flags
    _put(rows, 48, 2, 0xFFFF)
    return _finish(rows, TCP, 50)


def udp(
    source: Numbers, port: Numbers, to: Numbers, to_port: Numbers, count: int, ttl: int = 64,
    fragment: Numbers = 0, identification: Numbers = 0,
) -> np.ndarray:  # fmt: skip
    """Datagrams; as fragments, the first ones bear the header and the others bytes that look like one."""
    rows = _ipv4(count, UDP, source, to, ttl, fragment, identification)
    _put(rows, 34, 2, port)
    _put(rows, 36, 2, to_port)
    _put(rows, 38, 2, ROW - 34)
    return _finish(rows, UDP, 40)


def echo(source: Numbers, to: Numbers, count: int) -> np.ndarray:
    """Requests."""
    rows = _ipv4(count, ICMP, source, to)
    rows[:, 34] = 8
    _put(rows, 38, 2, np.arange(count) & 0xFFFF)
    return _finish(rows, ICMP, 36)


def outside(rows: np.ndarray) -> Traffic:
    """All from the clients' side."""
    return Traffic(rows, np.full(len(rows), OUTSIDE, np.uint16))


def openings(flows: int) -> tuple[np.ndarray, np.ndarray]:
    """What begins the established flows: SYNs and first datagrams; and what the clients send from then on."""
    numbers = np.random.default_rng(1).permutation(flows)
    half = flows // 2
    clients, ports = CLIENT4 + numbers // 50_000, 1024 + numbers % 50_000
    syn = tcp(clients[:half], ports[:half], VIP, VIP_PORT, SYN, half)
    ack = tcp(clients[:half], ports[:half], VIP, VIP_PORT, ACK, half)
    data = udp(clients[half:], ports[half:], VIP, VIP_PORT, flows - half)
    return np.concatenate((syn, data)), np.concatenate((ack, data))


# ------------------------------------------------------------------------------------------------------ floods


def _random_clients(count: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(2)
    return rng.integers(ATTACKER, ATTACKER + (1 << 28), count), rng.integers(1, 65536, count)


def _syn(count: int, log2: int, aim: Aim) -> np.ndarray:
    clients, ports = _random_clients(count)
    return tcp(clients, ports, aim.vip, aim.tcp_port, SYN, count)


def _udp(count: int, log2: int, aim: Aim) -> np.ndarray:
    clients, ports = _random_clients(count)
    return udp(clients, ports, aim.vip, aim.udp_port, count)


def _fragments(count: int, log2: int, aim: Aim) -> np.ndarray:
    """Half of them first fragments that nothing follows, half later ones that nothing precedes."""
    clients, ports = _random_clients(count)
    fields = np.where(np.arange(count) % 2 == 0, _MORE, 4)
    numbers = np.arange(count) & 0xFFFF
    return udp(clients, ports, aim.vip, aim.udp_port, count, fragment=fields, identification=numbers)


def _collision(count: int, log2: int, aim: Aim) -> np.ndarray:
    clients, ports = colliding(ATTACKER, 4000, aim.vip, aim.udp_port, log2, count)
    return udp(clients.astype(np.int64), ports.astype(np.int64), aim.vip, aim.udp_port, count)


def _icmp(count: int, log2: int, aim: Aim) -> np.ndarray:
    return echo(_random_clients(count)[0], aim.vip, count)


def _ttl(count: int, log2: int, aim: Aim) -> np.ndarray:
    clients, ports = _random_clients(count)
    return udp(clients, ports, aim.vip, aim.udp_port, count, ttl=1)


def _spoofed(count: int, log2: int, aim: Aim) -> np.ndarray:
    """What pods would answer to an established client, but from the clients' side."""
    numbers = np.arange(count)
    pods = aim.pod + numbers % aim.pods
    return tcp(pods, aim.pod_port, aim.client, 1024 + numbers % 50_000, ACK, count)


def _denied(count: int, log2: int, aim: Aim) -> np.ndarray:
    rng = np.random.default_rng(3)
    clients, ports = DENIED + rng.integers(0, 1 << 22, count), rng.integers(1, 65536, count)
    return tcp(clients, ports, aim.node, aim.node_port, SYN, count)


FLOODS: dict[str, tuple[str, Callable[[int, int, Aim], np.ndarray]]] = {
    "syn": ("SYNs of random clients", _syn),
    "udp": ("datagrams of random clients", _udp),
    "fragments": ("fragments, first ones alone and later ones alone", _fragments),
    "collision": ("flows of one bucket of VPP's hash", _collision),
    "icmp": ("echo requests to the VIP", _icmp),
    "ttl": ("datagrams whose TTL is 1", _ttl),
    "spoofed": ("pods' addresses, from the clients' side", _spoofed),
    "denied": ("SYNs to a node port, of clients that it does not serve", _denied),
}


def flood(name: str, count: int, log2: int, aim: Aim = _MEMORY) -> Traffic:
    """So many packets of one kind; `log2` is the table's size, which only an attack on one bucket looks at."""
    return outside(FLOODS[name][1](count, log2, aim))


def repeated(what: Traffic, times: int) -> Traffic:
    """One after the other."""
    return Traffic(np.tile(what.rows, (times, 1)), np.tile(what.interfaces, times))


def interleaved(one: Traffic, other: Traffic, ratio: int) -> Traffic:
    """Behind each packet of `one` follow `ratio` of `other`, which begins anew when it has ended."""
    count = len(one)
    places = np.arange(count * ratio) % len(other)
    rows = np.empty((count, 1 + ratio, ROW), np.uint8)
    interfaces = np.empty((count, 1 + ratio), np.uint16)
    rows[:, 0], interfaces[:, 0] = one.rows, one.interfaces
    rows[:, 1:] = other.rows[places].reshape(count, ratio, ROW)
    interfaces[:, 1:] = other.interfaces[places].reshape(count, ratio)
    return Traffic(rows.reshape(-1, ROW), interfaces.reshape(-1))
