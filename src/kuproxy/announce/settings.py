"""`[announce]` in kuproxy.toml: which VIPs the network hears of, and how.  Without the table: none.

Read by the daemon with everything else, and by the speakers alone, which need nothing of the rest.
"""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from kuproxy.errors import ConfigError, Problem
from kuproxy.model.vip import Address, Prefix, parse_prefix
from kuproxy.toml import read_toml

__all__ = ["Announce", "Bgp", "Layer2", "Neighbor", "check_announce", "load_announce", "read_announce"]

DEFAULT_SOCKET = "/run/kuproxy/ku.sock"
_Asn = Annotated[int, Meta(ge=1, le=(1 << 32) - 1)]
_Seconds = Annotated[float, Meta(ge=0, le=3600)]


class _Part(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of the tables."""


class Neighbor(_Part, frozen=True):
    """`[[announce.bgp.neighbors]]`: one router."""

    address: str
    asn: _Asn
    source: str = ""  # our end of the session; empty: next_hop4 or next_hop6
    password_file: str = ""  # of TCP MD5 (RFC 2385); for the user that announces alone
    port: Annotated[int, Meta(ge=1, le=65535)] = 179
    multihop: Annotated[int, Meta(ge=0, le=255)] = 0  # TTL of what we send; 0: on the same link


class Bgp(_Part, frozen=True):
    """`[announce.bgp]`: what ExaBGP is told."""

    asn: _Asn
    router_id: str
    neighbors: Annotated[list[Neighbor], Meta(min_length=1)]
    next_hop4: str = ""  # of VIPs of that family; without it they are not announced
    next_hop6: str = ""
    # RFC 4271 section 4.2: 0, or at least 3.  A node that vanishes without a word is missed for so long.
    hold_s: Annotated[int, Meta(ge=3, le=65535)] = 9
    communities: list[Annotated[str, Meta(pattern=r"^\d{1,5}:\d{1,5}$")]] = []
    med: Annotated[int, Meta(ge=0, le=(1 << 32) - 1)] | None = None

    def next_hop(self, prefix: Prefix) -> str:
        return self.next_hop4 if prefix.version == 4 else self.next_hop6

    def source(self, neighbor: Neighbor) -> str:
        """Our end of the session; empty if nobody has said."""
        return neighbor.source or (self.next_hop4 if ip_address(neighbor.address).version == 4 else self.next_hop6)


class Layer2(_Part, frozen=True):
    """`[announce.layer2]`: addresses of VIPs on one link."""

    interface: Annotated[str, Meta(min_length=1, max_length=15)]


class Announce(_Part, frozen=True):
    """`[announce]`."""

    ranges: Annotated[list[str], Meta(min_length=1)]  # VIPs within these, and no others
    drain_s: _Seconds = 5.0  # from withdrawal to the end of forwarding, at a stop
    patience_s: Annotated[float, Meta(ge=1, le=3600)] = 30.0  # for a control process that says nothing
    interval_s: Annotated[float, Meta(ge=0.05, le=60)] = 0.5  # between two questions of a speaker's
    bgp: Bgp | None = None
    layer2: Layer2 | None = None

    def prefixes(self) -> tuple[Prefix, ...]:
        return tuple(map(parse_prefix, self.ranges))


def _address(text: str, field: str, problems: list[Problem], version: int = 0) -> Address | None:
    try:
        found = ip_address(text)
    except ValueError:
        problems.append(Problem(f"{text!r} is not an IP address", field=field))
        return None
    if version and found.version != version:
        problems.append(Problem(f"{text} is not IPv{version}", field=field))
    return found


def check_announce(announce: Announce, file: str) -> list[Problem]:
    """What the types do not say."""
    problems: list[Problem] = []
    for index, text in enumerate(announce.ranges):
        try:
            parse_prefix(text)
        except ValueError as error:
            problems.append(Problem(str(error), field=f"announce.ranges[{index}]"))
    if announce.bgp is None and announce.layer2 is None:
        hint = "give [announce.bgp] or [announce.layer2]"
        problems.append(Problem("nobody would hear of it", field="announce", hint=hint))
    if announce.bgp is not None:
        problems += _check_bgp(announce.bgp)
    return [Problem(each.message, file, each.line, each.field, each.hint) for each in problems]


def _check_bgp(bgp: Bgp) -> list[Problem]:
    problems: list[Problem] = []
    _address(bgp.router_id, "announce.bgp.router_id", problems, 4)
    for version, text in ((4, bgp.next_hop4), (6, bgp.next_hop6)):
        if text:
            _address(text, f"announce.bgp.next_hop{version}", problems, version)
    if not (bgp.next_hop4 or bgp.next_hop6):
        problems.append(Problem("no route has a next hop", field="announce.bgp", hint="give next_hop4 or next_hop6"))
    for index, neighbor in enumerate(bgp.neighbors):
        place = f"announce.bgp.neighbors[{index}]"
        peer = _address(neighbor.address, f"{place}.address", problems)
        if peer is None:
            continue
        source = bgp.source(neighbor)
        if not source:
            hint = "give source, the address of this node that the router knows"
            problems.append(Problem("our end of the session has no address", field=place, hint=hint))
        elif neighbor.source:
            _address(source, f"{place}.source", problems, peer.version)
    return problems


def read_announce(content: dict[str, Any], file: str) -> Announce:
    """The table, judged.  Raises ConfigError."""
    try:
        announce = msgspec.convert(content, Announce)
    except msgspec.ValidationError as error:
        message, _, place = str(error).partition(" - at `")
        inner = place.rstrip("`").removeprefix("$").lstrip(".")
        field = f"announce.{inner}" if inner else "announce"
        raise ConfigError(Problem(message, file, field=field)) from None
    problems = check_announce(announce, file)
    if problems:
        raise ConfigError(problems)
    return announce


def load_announce(path: Path) -> tuple[Announce, str]:
    """What a speaker needs of the daemon's file: the table, and the API's socket.  Raises ConfigError."""
    content = read_toml(path)
    table = content.get("announce")
    if not isinstance(table, dict):
        hint = "docs/announcing.md says what belongs there"
        raise ConfigError(Problem("is not there: nothing is to be announced", str(path), field="announce", hint=hint))
    api = content.get("api")
    socket = api.get("socket", DEFAULT_SOCKET) if isinstance(api, dict) else DEFAULT_SOCKET
    return read_announce(table, str(path)), str(socket)
