"""Traces made up: flows drawn from a distribution, their packets in the order of time, written as a capture.

What is drawn is what matters to a load balancer: who talks (the client), how much (packets of a flow), and when.  The
packets are whole and right, checksums too, so that the same file can be replayed, sent, or looked at.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kuproxy.codes import Protocol
from kuproxy.errors import ConfigError, DriverError
from kuproxy.model.vip import Vip

__all__ = ["Kind", "Traffic", "draw", "write_trace"]

_NS = 1_000_000_000
_START_NS = 1_700_000_000 * _NS
_MACS = bytes.fromhex("020000000002020000000001")
_SYN, _ACK, _FIN_ACK = 0x02, 0x10, 0x11
_CLIENT4 = 0x28000000  # 40.0.0.0
_CLIENT6 = bytes.fromhex("20010db8000000000000")  # RFC 3849
_CHUNK = 200_000  # packets written at once
MOST_CLIENTS = 1 << 24


class Kind(enum.Enum):
    """What a trace is like."""

    ZIPF = "zipf"  # a client's part of the flows falls with its rank, rank ** -exponent
    HEAVY = "heavy-hitters"  # one flow in a hundred has half of all packets
    TAIL = "long-tail"  # packets per flow follow a Pareto law with exponent 1.2
    FLOOD = "syn-flood"  # half of the packets are SYNs that nothing follows, each of another client


@dataclass(frozen=True, slots=True)
class Traffic:
    """A trace to be drawn.  Raises ConfigError with what is wrong."""

    kind: Kind
    packets: int = 100_000
    clients: int = 1000
    flow_packets: float = 10.0  # of a flow, on average
    duration_s: float = 60.0
    exponent: float = 1.1  # of ZIPF
    seed: int = 1

    def __post_init__(self) -> None:
        for name, good in (
            ("packets", self.packets >= 1),
            ("clients", 1 <= self.clients <= MOST_CLIENTS),
            ("flow_packets", self.flow_packets >= 1),
            ("duration_s", self.duration_s > 0),
            ("exponent", self.exponent > 0),
            ("seed", self.seed >= 0),
        ):
            if not good:
                option = name.removesuffix("_s").replace("_", "-")
                hint = f"; {MOST_CLIENTS} at most" if name == "clients" else ""
                raise ConfigError(f"--{option}: {getattr(self, name)} makes no trace{hint}")


@dataclass(frozen=True, slots=True)
class Drawn:
    """Packets in the order of time; `flow` numbers flows from 0, of which the other three tell."""

    time_ns: np.ndarray  # int64[packets]
    flow: np.ndarray  # int64[packets]
    first: np.ndarray  # bool[packets]
    last: np.ndarray  # bool[packets]; never of a flow that is only a SYN
    clients: np.ndarray  # int64[flows]
    ports: np.ndarray  # int64[flows]
    lone: np.ndarray  # bool[flows]: a SYN that nothing follows


def _lengths(traffic: Traffic, wanted: int, rng: np.random.Generator) -> np.ndarray:
    """int64: packets of each flow, `wanted` in all."""
    flows = max(1, round(wanted / traffic.flow_packets))
    if traffic.kind is Kind.TAIL:
        size = 1 + rng.pareto(1.2, flows)
    elif traffic.kind is Kind.HEAVY:
        size = np.ones(flows)
        heavy = max(1, flows // 100)
        size[rng.permutation(flows)[:heavy]] = max(1, flows - heavy) / heavy
    else:
        size = rng.geometric(1 / traffic.flow_packets, flows).astype(np.float64)
    lengths = np.maximum(1, np.floor(size * (wanted / size.sum()))).astype(np.int64)
    while (excess := int(lengths.sum()) - wanted) > 0:  # the ones that were rounded up
        long = np.flatnonzero(lengths > 1)
        if not len(long):
            return lengths[:wanted]
        lengths[long[np.argsort(-lengths[long])[:excess]]] -= 1
    lengths[np.argmax(lengths)] -= excess
    return lengths


def draw(traffic: Traffic) -> Drawn:
    """The same traffic and seed make the same trace."""
    rng = np.random.default_rng(traffic.seed)
    lone_flows = traffic.packets // 2 if traffic.kind is Kind.FLOOD else 0
    lengths = _lengths(traffic, traffic.packets - lone_flows, rng)
    regular = len(lengths)
    exponent = traffic.exponent if traffic.kind is Kind.ZIPF else 0.0
    part = np.arange(1, traffic.clients + 1, dtype=np.float64) ** -exponent
    clients = np.searchsorted(np.cumsum(part / part.sum())[:-1], rng.random(regular), side="right")
    clients = np.concatenate(
        [clients, traffic.clients + rng.integers(0, MOST_CLIENTS - traffic.clients + 1, lone_flows)]
    )
    lengths = np.concatenate([lengths, np.ones(lone_flows, np.int64)])
    flow = np.repeat(np.arange(len(lengths)), lengths)
    # A flow begins somewhere and spreads its packets over an exponential time, a tenth of the trace on average.
    begin = rng.random(len(lengths)) * traffic.duration_s
    span = np.minimum(rng.exponential(traffic.duration_s / 10, len(lengths)), traffic.duration_s - begin)
    time_s = begin[flow] + np.where(_first(flow), 0.0, rng.random(len(flow))) * span[flow]
    order = np.lexsort((np.arange(len(flow)), time_s))
    flow = flow[order]
    # The client's own flows have different ports.
    rank = np.empty(len(clients), np.int64)
    by_client = np.argsort(clients, kind="stable")
    sorted_clients = clients[by_client]
    starts = np.searchsorted(sorted_clients, sorted_clients)
    rank[by_client] = np.arange(len(clients)) - starts
    first = np.zeros(len(flow), np.bool_)
    first[np.unique(flow, return_index=True)[1]] = True
    last = np.zeros(len(flow), np.bool_)
    last[len(flow) - 1 - np.unique(flow[::-1], return_index=True)[1]] = True
    lone = np.arange(len(clients)) >= regular
    if int(rank.max()) >= 64_000:
        raise ConfigError(
            f"--clients: one client would have {int(rank.max()) + 1} flows; it has 64000 ports, take more"
        )
    last &= ~first & ~lone[flow]
    return Drawn(
        _START_NS + (time_s[order] * _NS).astype(np.int64), flow, first, last, clients, 1024 + rank, lone
    )


def _first(flow: np.ndarray) -> np.ndarray:
    return np.concatenate([[True], flow[1:] != flow[:-1]])


def _put(rows: np.ndarray, at: int, width: int, values: np.ndarray | int) -> None:
    """Big-endian numbers into the bytes at ... at + width of every row."""
    for byte in range(width):
        rows[:, at + byte] = (np.asarray(values) >> 8 * (width - 1 - byte)) & 0xFF


def _checksum(rows: np.ndarray, start: int, end: int, more: int = 0) -> np.ndarray:
    """RFC 1071 over rows[:, start:end] and a number."""
    total = np.ascontiguousarray(rows[:, start:end]).view(">u2").sum(axis=1, dtype=np.int64) + more
    for _ in range(3):
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def _frames(vip: Vip, drawn: Drawn, rows: slice) -> np.ndarray:
    """uint8[packets, bytes]: Ethernet frames towards the VIP, of its protocol (any: TCP)."""
    tcp = vip.key.protocol is not Protocol.UDP
    family = int(vip.key.family)
    header = 20 if tcp else 8
    l4 = 34 if family == 4 else 54
    frames = np.zeros((len(drawn.flow[rows]), max(60, l4 + header + 4)), np.uint8)
    end = l4 + header + (0 if tcp else 4)
    flow = drawn.flow[rows]
    # So that packets of one flow can be told apart: the identification of IPv4, the payload of UDP.
    number = np.arange(len(drawn.flow))[rows]
    destination = np.frombuffer(vip.key.prefix.network_address.packed, np.uint8)
    frames[:, :12] = np.frombuffer(_MACS, np.uint8)
    protocol = int(Protocol.TCP if tcp else Protocol.UDP)
    if family == 4:
        _put(frames, 12, 2, 0x0800)
        frames[:, 14] = 0x45
        _put(frames, 16, 2, end - 14)
        _put(frames, 18, 2, number)
        frames[:, 22], frames[:, 23] = 64, protocol
        _put(frames, 26, 4, _CLIENT4 + drawn.clients[flow])
        frames[:, 30:34] = destination
        _put(frames, 24, 2, _checksum(frames, 14, 34))
    else:
        _put(frames, 12, 2, 0x86DD)
        frames[:, 14] = 0x60
        _put(frames, 18, 2, end - 54)
        frames[:, 20], frames[:, 21] = protocol, 64
        frames[:, 22:32] = np.frombuffer(_CLIENT6, np.uint8)
        _put(frames, 32, 6, drawn.clients[flow])
        frames[:, 38:54] = destination
    _put(frames, l4, 2, drawn.ports[flow])
    _put(frames, l4 + 2, 2, vip.key.port or 80)
    if tcp:
        _put(frames, l4 + 4, 4, 1 + ~drawn.first[rows])
        frames[:, l4 + 12] = 0x50
        flags = np.where(drawn.first[rows], _SYN, np.where(drawn.last[rows], _FIN_ACK, _ACK))
        frames[:, l4 + 13] = flags
        _put(frames, l4 + 14, 2, 65535)
    else:
        _put(frames, l4 + 4, 2, end - l4)
        _put(frames, l4 + 8, 4, number)
    start = 26 if family == 4 else 22
    value = _checksum(frames, start, end, protocol + end - l4)
    _put(frames, l4 + (16 if tcp else 6), 2, value if tcp else np.where(value == 0, 0xFFFF, value))
    return frames


def write_trace(
    path: Path, vip: Vip, traffic: Traffic, told: Callable[[int], object] = lambda _done: None
) -> Drawn:
    """Write `traffic` towards `vip` as a pcap file with nanoseconds.  Raises ConfigError, DriverError."""
    if path.suffix != ".pcap":
        raise ConfigError(f"OUT: {path} does not end in .pcap")
    if vip.key.protocol not in (Protocol.ANY, Protocol.TCP, Protocol.UDP):
        raise ConfigError(f"VIP {vip.key}: traces are of TCP or UDP")
    drawn = draw(traffic)
    try:
        with path.open("wb") as file:
            # draft-ietf-opsawg-pcap section 4: nanoseconds, version 2.4, snapshot length, Ethernet.
            np.array([0xA1B23C4D, 2 | 4 << 16, 0, 0, 262144, 1], "<u4").tofile(file)
            for start in range(0, len(drawn.flow), _CHUNK):
                rows = slice(start, start + _CHUNK)
                frames = _frames(vip, drawn, rows)
                size = frames.shape[1]
                record = np.dtype([("time", "<u4", 2), ("length", "<u4", 2), ("data", "u1", size)])
                records = np.zeros(len(frames), record)
                records["time"][:, 0], records["time"][:, 1] = np.divmod(drawn.time_ns[rows], _NS)
                records["length"] = size
                records["data"] = frames
                records.tofile(file)
                told(start + len(frames))
    except OSError as error:
        raise DriverError(f"{path}: {error.strerror}") from error
    return drawn
