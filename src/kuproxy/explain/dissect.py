"""A frame in named fields, and what has changed from one frame to another, field by field.

For readers, not for forwarding: it follows the lengths that the headers state, and whatever does not fit is `bytes`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from kuproxy.explain.report import Rewrite

__all__ = ["Field", "dissect", "rewrites"]


@dataclass(frozen=True, slots=True)
class Field:
    """Bytes of a frame with a name; layers of tunnels are numbered from outside."""

    layer: str
    name: str
    offset: int
    data: bytes
    text: str = ""


def _number(data: bytes) -> str:
    return str(int.from_bytes(data, "big"))


def _hex(data: bytes) -> str:
    return "0x" + data.hex()


def _ipv4(data: bytes) -> str:
    return str(IPv4Address(data))


def _ipv6(data: bytes) -> str:
    return str(IPv6Address(data))


def _mac(data: bytes) -> str:
    return data.hex(":")


Row = tuple[str, int, int, Callable[[bytes], str]]  # name, offset in the header, bytes, how it reads

_ETHERNET: tuple[Row, ...] = (("destination", 0, 6, _mac), ("source", 6, 6, _mac), ("type", 12, 2, _hex))
_VLAN: tuple[Row, ...] = (("tag", 0, 2, _hex), ("type", 2, 2, _hex))
_IPV4: tuple[Row, ...] = (
    ("version and length", 0, 1, _hex), ("DSCP and ECN", 1, 1, _hex), ("total length", 2, 2, _number),
    ("identification", 4, 2, _number), ("flags and offset", 6, 2, _hex), ("TTL", 8, 1, _number),
    ("protocol", 9, 1, _number), ("checksum", 10, 2, _hex), ("source", 12, 4, _ipv4),
    ("destination", 16, 4, _ipv4),
)  # fmt: skip
_IPV6: tuple[Row, ...] = (
    ("version, class and label", 0, 4, _hex), ("payload length", 4, 2, _number), ("next header", 6, 1, _number),
    ("hop limit", 7, 1, _number), ("source", 8, 16, _ipv6), ("destination", 24, 16, _ipv6),
)  # fmt: skip
_PORTS: tuple[Row, ...] = (("source port", 0, 2, _number), ("destination port", 2, 2, _number))
_TRANSPORT: dict[int, tuple[str, int, tuple[Row, ...]]] = {
    6: (
        "TCP",
        20,
        (
            *_PORTS, ("sequence", 4, 4, _number), ("acknowledgement", 8, 4, _number),
            ("offset and flags", 12, 2, _hex), ("window", 14, 2, _number), ("checksum", 16, 2, _hex),
            ("urgent pointer", 18, 2, _number),
        ),
    ),
    17: ("UDP", 8, (*_PORTS, ("length", 4, 2, _number), ("checksum", 6, 2, _hex))),
    132: ("SCTP", 12, (*_PORTS, ("tag", 4, 4, _hex), ("checksum", 8, 4, _hex))),
    1: ("ICMP", 8, (("type", 0, 1, _number), ("code", 1, 1, _number), ("checksum", 2, 2, _hex), ("rest", 4, 4, _hex))),
    58: (
        "ICMPv6",
        8,
        (("type", 0, 1, _number), ("code", 1, 1, _number), ("checksum", 2, 2, _hex), ("rest", 4, 4, _hex)),
    ),
    47: ("GRE", 4, (("flags", 0, 2, _hex), ("protocol", 2, 2, _hex))),
}  # fmt: skip
_EXTENSIONS = {
    0: "hop-by-hop options",
    43: "routing header",
    44: "fragment header",
    60: "destination options",
}
_INNER = {4: 0x0800, 41: 0x86DD}


class _Reader:
    def __init__(self, data: bytes, gue_port: int) -> None:
        self.data, self.gue_port = data, gue_port
        self.fields: list[Field] = []
        self.ip_layers = 0

    def header(self, layer: str, at: int, rows: tuple[Row, ...]) -> None:
        for name, offset, size, text in rows:
            part = self.data[at + offset : at + offset + size]
            if len(part) == size:
                self.fields.append(Field(layer, name, at + offset, part, text(part)))

    def rest(self, layer: str, name: str, at: int, end: int | None = None) -> None:
        part = self.data[at:end]
        if part:
            self.fields.append(Field(layer, name, at, part))

    def frame(self) -> None:
        if len(self.data) < 14:
            self.rest("frame", "bytes", 0)
            return
        self.header("Ethernet", 0, _ETHERNET)
        at, kind = 14, int.from_bytes(self.data[12:14], "big")
        tag = 0
        while kind in (0x8100, 0x88A8) and len(self.data) >= at + 4:
            tag += 1
            self.header(f"VLAN {tag}", at, _VLAN)
            kind = int.from_bytes(self.data[at + 2 : at + 4], "big")
            at += 4
        self.network(kind, at)

    def network(self, kind: int, at: int) -> None:
        self.ip_layers += 1
        mark = "" if self.ip_layers == 1 else f" ({self.ip_layers})"
        data = self.data
        if kind == 0x0800 and len(data) >= at + 20 and data[at] >> 4 == 4 and data[at] & 15 >= 5:
            self.header("IPv4" + mark, at, _IPV4)
            length = (data[at] & 15) * 4
            self.rest("IPv4" + mark, "options", at + 20, at + length)
            self.transport(
                data[at + 9], at + length, mark, int.from_bytes(data[at + 6 : at + 8], "big") & 0x1FFF
            )
        elif kind == 0x86DD and len(data) >= at + 40 and data[at] >> 4 == 6:
            self.header("IPv6" + mark, at, _IPV6)
            protocol, at, offset = data[at + 6], at + 40, 0
            while protocol in _EXTENSIONS and len(data) >= at + 8:
                length = 8 if protocol == 44 else (data[at + 1] + 1) * 8
                if protocol == 44:
                    offset = int.from_bytes(data[at + 2 : at + 4], "big") >> 3
                self.rest("IPv6" + mark, _EXTENSIONS[protocol], at, at + length)
                protocol, at = data[at], at + length
                if offset:
                    break
            self.transport(protocol, at, mark, offset)
        else:
            self.rest("frame", "payload", at)

    def transport(self, protocol: int, at: int, mark: str, offset: int) -> None:
        if not offset and protocol in _INNER:
            self.network(_INNER[protocol], at)
            return
        known = _TRANSPORT.get(protocol)
        if offset or known is None or len(self.data) < at + known[1]:
            self.rest("payload" + mark, "bytes", at)
            return
        name, length, rows = known
        self.header(name + mark, at, rows)
        if protocol == 47 and self.data[at : at + 2] == bytes(2):
            self.network(int.from_bytes(self.data[at + 2 : at + 4], "big"), at + 4)
        elif (
            protocol == 17
            and self.gue_port
            and int.from_bytes(self.data[at + 2 : at + 4], "big") == self.gue_port
        ):
            self.gue(at + 8, mark)
        else:
            self.rest("payload" + mark, "bytes", at + length)

    def gue(self, at: int, mark: str) -> None:
        """Variant 1 has no header of its own; variant 0 one of four bytes (draft-ietf-intarea-gue)."""
        first = self.data[at] >> 4 if len(self.data) > at else 0
        if first in (4, 6):
            self.network(0x0800 if first == 4 else 0x86DD, at)
        elif len(self.data) >= at + 4 and self.data[at + 1] in _INNER:
            self.rest("GUE" + mark, "header", at, at + 4)
            self.network(_INNER[self.data[at + 1]], at + 4)
        else:
            self.rest("payload" + mark, "bytes", at)


def dissect(data: bytes, gue_port: int = 0) -> list[Field]:
    """The fields of a frame, which together are all of its bytes but cut headers.  `gue_port`: that of GUE, 0: none."""
    reader = _Reader(data, gue_port)
    reader.frame()
    return reader.fields


def _by_name(fields: list[Field]) -> dict[tuple[str, str], Field]:
    return {(field.layer, field.name): field for field in fields}


def _renamed(fields: list[Field], extra: int) -> Iterator[Field]:
    """IP layers counted from inside, so that what a tunnel carries is compared with what was put in."""
    for field in fields:
        base, _, number = field.layer.partition(" (")
        counted = int(number.rstrip(")")) if number else 1
        if field.layer.split(" (")[0] in ("Ethernet", "frame") or base.startswith("VLAN"):
            yield field
            continue
        place = counted - extra
        layer = f"outer {base}" if place < 1 else base if place == 1 else f"{base} ({place})"
        yield Field(layer, field.name, field.offset, field.data, field.text)


def _depth(fields: list[Field]) -> int:
    return max((int(field.layer.partition(" (")[2].rstrip(")") or 1) for field in fields), default=1)


def rewrites(before: bytes, after: bytes, gue_port: int = 0) -> list[Rewrite]:
    """Every field that differs, is gone or is new, in the order of the frame that leaves."""
    old_fields, new_fields = dissect(before, gue_port), dissect(after, gue_port)
    extra = max(0, _depth(new_fields) - _depth(old_fields))
    olds = _by_name(old_fields)
    news = _by_name(list(_renamed(new_fields, extra)))
    found = []
    for key in [*(key for key in olds if key not in news), *news]:
        old, new = olds.get(key), news.get(key)
        if old is not None and new is not None and old.data == new.data:
            continue
        found.append(
            Rewrite(
                layer=key[0],
                field=key[1],
                offset_before=None if old is None else old.offset,
                offset_after=None if new is None else new.offset,
                old=None if old is None else old.data.hex(),
                new=None if new is None else new.data.hex(),
                old_text="" if old is None else old.text,
                new_text="" if new is None else new.text,
            )
        )
    return found
