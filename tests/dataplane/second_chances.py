"""Two nodes with the same VIP, and pods that know their connections: what tests of second chances are made of."""

from __future__ import annotations

import struct
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

from differential.machine import ReferencePlane
from differential.plane import CompiledPlane
from differential.strategies import Config
from kuproxy.codes import Node, Outcome, Reason
from kuproxy.model.vip import Pod, Vip
from kuproxy.reference import RefPacket, Result
from packets import ACK, RST, SYN, frame, headers, reply_to, tcp, verify_checksums
from reference.worlds import vip

Plane = CompiledPlane | ReferencePlane
OUTSIDE, INSIDE = 0, 1
NOW = 1000
PODS = {4: [f"10.0.0.{n}" for n in range(1, 6)], 6: [f"2001::{n}" for n in range(2, 7)]}
# By the kind of VIP: its address, the clients' first three quarters, the pods' family.
KINDS = {
    "nat44": ("90.0.0.1", "40.0.0.", 4),
    "nat66": ("9000::1", "4000::", 6),
    "nat46": ("91.0.0.1", "40.0.0.", 6),
    "nat64": ("9100::1", "4000::", 4),
}
SETTINGS: dict[str, Any] = {
    "buckets": 1 << 14,  # so many that hardly any half-open flow gives way
    "second_chance": True,
    "any_node_address": False,
    "masquerade": (ip_address("40.0.0.254"), ip_address("4000::fe")),
}
Ends = tuple[bytes, bytes, int, int]


def ends(data: bytes) -> Ends:
    """Source, destination and ports of a segment."""
    l3, l4, _, _ = headers(data)
    width = 4 if data[l3] >> 4 == 4 else 16
    at = l3 + (12 if width == 4 else 8)
    source, destination = data[at : at + width], data[at + width : at + 2 * width]
    return source, destination, *struct.unpack_from(">HH", data, l4)


def flags_of(data: bytes) -> int:
    return data[headers(data)[1] + 13]


def segment_back(data: bytes, flags: int, sequence: int = 0) -> bytes:
    """From the receiver of `data`, to its sender."""
    source, destination, source_port, destination_port = ends(data)
    back = tcp(
        ip_address(destination), ip_address(source), destination_port, source_port, flags=flags, sequence=sequence
    )
    return frame(back)


class Pods:
    """All of them: whoever has taken a SYN knows the connection, nobody else does (RFC 9293 section 3.10.7.1)."""

    def __init__(self) -> None:
        self.known: set[Ends] = set()

    def answer(self, data: bytes) -> bytes:
        if flags_of(data) & SYN:
            self.known.add(ends(data))
            return segment_back(data, SYN | ACK)
        if ends(data) in self.known:
            return segment_back(data, ACK)
        [acknowledgement] = struct.unpack_from(">I", data, headers(data)[1] + 8)
        return segment_back(data, RST, acknowledgement)


class Bed:
    """Node `one` has begun `count` connections; `two` knows of none. Both have the same VIP."""

    def __init__(self, make: type[Plane], kind: str = "nat44", count: int = 200, **more: Any) -> None:
        self.clients = more.pop("clients", 5)
        hidden = {"masquerade": True} if more.pop("hidden", False) else {}
        settings = {name: more.pop(name) for name in list(more) if name in Config.__dataclass_fields__}
        self.config = Config(**(SETTINGS | settings))
        self.address, self._clients, self.family = KINDS[kind]
        self.vip: Vip = vip(
            self.address,
            PODS[self.family][:4],
            port=80,
            target_port=8080,
            kind=kind,
            new_len=256,
            **hidden,
            **more,
        )
        self.pods = Pods()
        self.one, self.two = make(self.config), make(self.config)
        for each in (self.one, self.two):
            each.mark_interface(INSIDE, True, True)
            each.set_vip(self.vip)
        self.count = count
        self.where = [self.talk(self.one, number, SYN) for number in range(count)]

    def serve(self, *numbers: int, at: Plane | None = None, **more: Any) -> None:
        """The VIP has these of the five pods."""
        pods = tuple(Pod(ip_address(PODS[self.family][number])) for number in numbers)
        self.vip = replace(self.vip, pods=pods, **more)
        for each in (self.one, self.two) if at is None else (at,):
            each.set_vip(self.vip)

    def segment(self, number: int, flags: int = ACK) -> bytes:
        client = f"{self._clients}{number % self.clients + 1}"
        return frame(tcp(client, self.address, 20000 + number, 80, flags=flags, acknowledgement=77 + number))

    def send(self, plane: Plane, data: bytes, interface: int = OUTSIDE, now: int = NOW) -> Result:
        [result] = plane.receive([RefPacket(data, interface)], now, [0])
        return result

    def to_pod(self, plane: Plane, number: int, flags: int = ACK, now: int = NOW) -> Result:
        sent = self.send(plane, self.segment(number, flags), now=now)
        assert sent.outcome is Outcome.TRANSMIT, sent
        assert not verify_checksums(sent.data)
        return sent

    def talk(self, plane: Plane, number: int, flags: int = ACK, now: int = NOW) -> str:
        """A segment and what the client hears of it: the pod's name, "" nothing, or "reset"."""
        sent = self.to_pod(plane, number, flags, now)
        back = self.send(plane, self.pods.answer(sent.data), INSIDE, now)
        if back.outcome is Outcome.DROP:
            assert back.reason is Reason.SECOND_CHANCE
            return ""
        assert back.outcome is Outcome.TRANSMIT, back
        assert not verify_checksums(back.data)
        source, destination, source_port, destination_port = ends(back.data)
        expected = ends(self.segment(number))
        assert (destination, source, destination_port, source_port) == expected, "restored"
        return "reset" if flags_of(back.data) & RST else str(sent.pod)

    def counted(self, plane: Plane, reason: Reason) -> int:
        return sum(count for (_, each), count in plane.counters().items() if each is reason)

    def at_balance(self, plane: Plane, reason: Reason) -> int:
        return int(plane.counters().get((Node.BALANCE, reason), 0))

    def moved(self) -> list[int]:
        """Connections whose slot has another pod now: those that a node without memory gives to the wrong one."""
        fresh = type(self.two)(self.config)
        fresh.set_vip(self.vip)
        try:
            return [
                number for number, pod in enumerate(self.where)
                if str(self.send(fresh, self.segment(number)).pod) != pod
            ]  # fmt: skip
        finally:
            close(fresh)

    def close(self) -> None:
        for each in (self.one, self.two):
            close(each)


def close(plane: Plane) -> None:
    if isinstance(plane, CompiledPlane):
        plane.close()


def refusal(sent: Result) -> bytes:
    """A pod's that knows nothing of it."""
    return reply_to(segment_back(reply_to(sent.data), RST, 77))
