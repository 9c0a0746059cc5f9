"""Which of several workers gets a frame, in plain Python: what steering/choose.py does in BPF."""

from __future__ import annotations

from dataclasses import dataclass

from kuproxy.reference.ports import worker_of
from steering.model import PORTS, Address, parse

REMEMBERED_S = 5.0


@dataclass(frozen=True)
class Piece:
    """A fragment of a datagram."""

    datagram: tuple[bytes, bytes, bytes, int, int]
    first: bool
    protocol: int
    ports: tuple[int, int]


def piece_of(frame: bytes) -> Piece | None:
    """None for whole packets, and for what the model cannot parse."""
    ip = frame[14:]
    return _piece4(ip) if frame[12:14] == b"\x08\x00" else _piece6(ip)


def _piece4(ip: bytes) -> Piece | None:
    field, protocol = int.from_bytes(ip[6:8], "big"), ip[9]
    if field & 0x3FFF == 0:
        return None
    first = field & 0x1FFF == 0
    ports = _ports(ip[(ip[0] & 15) * 4 :], protocol) if first else (0, 0)
    return Piece((ip[12:16], ip[16:20], ip[4:6], protocol, 4), first, protocol, ports)


def _piece6(ip: bytes) -> Piece | None:
    protocol, at, piece, extensions = ip[6], 40, None, 0
    while protocol in (0, 43, 60) or (protocol == 44 and piece is None):
        extension = ip[at : at + 8]
        if len(extension) < 8 or (extensions == 4 and (piece is None or protocol != 44)):
            break
        extensions += 1
        if protocol == 44:
            at, protocol = at + 8, extension[0]
            field = int.from_bytes(extension[2:4], "big")
            if field & 0xFFF9:
                piece = (field & 0xFFF8 == 0, extension[4:8])
                extensions = 0
                if not piece[0]:
                    break
        else:
            at, protocol = at + 8 + extension[1] * 8, extension[0]
    if piece is None:
        return None
    first, identification = piece
    ports = _ports(ip[at:], protocol) if first else (0, 0)
    return Piece((ip[8:24], ip[24:40], identification, 0, 6), first, protocol, ports)


def _ports(l4: bytes, protocol: int) -> tuple[int, int]:
    if protocol not in PORTS or len(l4) < 4:
        return 0, 0
    return int.from_bytes(l4[:2], "big"), int.from_bytes(l4[2:4], "big")


class Spread:
    """The choice, with its memory of datagrams."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._datagrams: dict[tuple, tuple[float, int, bool]] = {}

    def worker_of(self, frame: bytes, forward: bool, now_s: float) -> int | None:
        """`forward`: the packet is a client's, not a pod's. None: not a packet that anybody could steer."""
        packet = parse(frame)
        if packet is None:
            return None
        piece = piece_of(frame)
        client: Address = packet.source if forward else packet.destination
        if piece is None:  # whole, or an error, which is of its embedded packet's flow
            port = packet.source_port if forward else packet.destination_port
            return worker_of(client, port, packet.protocol, self.workers)
        own = worker_of(client, piece.ports[0 if forward else 1], piece.protocol, self.workers)
        when, worker, first_came = self._datagrams.get(piece.datagram, (float("-inf"), own, False))
        if now_s - when >= REMEMBERED_S or (piece.first and first_came):
            worker, first_came, when = own, False, now_s
            self._datagrams[piece.datagram] = (when, worker, piece.first)
        elif piece.first:
            self._datagrams[piece.datagram] = (now_s, worker, True)
        return worker
