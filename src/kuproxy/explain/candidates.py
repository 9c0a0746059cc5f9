"""Which VIPs a destination fits, and why all but one of them lose.

The winner is the graph's; the sentences follow the order in which kp-lookup asks (docs/forwarding.md, "kp-lookup"):
the longest prefix, in it protocol with port, then protocol alone, then neither; node ports after all of them.
"""

from __future__ import annotations

from collections.abc import Iterable

from kuproxy.codes import Protocol
from kuproxy.control.compile import VipRecord
from kuproxy.explain.report import Candidate
from kuproxy.model.vip import Address, Vip

__all__ = ["candidates"]

MOST = 64  # that are told


def _name(number: int) -> str:
    try:
        return Protocol(number).name
    except ValueError:
        return f"protocol {number}"


def _misses(vip: Vip, protocol: int, port: int) -> str:
    """Why a VIP with the right address is not for this packet; "" if it is."""
    key = vip.key
    if key.protocol not in (Protocol.ANY, protocol):
        return f"it is for {key.protocol.name}, and the packet is {_name(protocol)}"
    if key.port and key.port != port:
        return f"it is for port {key.port}, and the packet goes to port {port}"
    if key.port and key.protocol is Protocol.ANY and protocol not in (6, 17, 132):
        return f"it is for a port, and {_name(protocol)} has none"
    return ""


def _precision(vip: Vip) -> tuple[int, int, int]:
    return vip.key.prefix.prefixlen, bool(vip.key.port), vip.key.protocol is not Protocol.ANY


def _behind(loser: Vip, winner: Vip) -> str:
    if loser.key.prefix.prefixlen != winner.key.prefix.prefixlen:
        return f"/{loser.key.prefix.prefixlen} is less specific than /{winner.key.prefix.prefixlen}"
    if bool(loser.key.port) != bool(winner.key.port):
        return "it stands for every port, the other for this one"
    return "it stands for every protocol, the other for this one"


def candidates(
    records: Iterable[VipRecord],
    chosen: int,
    address: Address,
    protocol: int,
    port: int,
    *,
    by_node_port: bool,
) -> list[Candidate]:
    """The chosen one first (`chosen`: its index, 0: none), then those that lost, then those that do not fit.

    `by_node_port`: the chosen one was found by its node port.
    """
    version = address.version
    fitting = [
        record for record in records if not record.removed and _concerns(record.vip, address, port, version)
    ]
    winner = next((record.vip for record in fitting if record.index == chosen), None)
    rows: list[tuple[tuple[int, ...], Candidate]] = []
    for record in fitting:
        vip = record.vip
        verdict, rule = _judge(vip, winner, address, protocol, port, by_node_port=by_node_port)
        rank = {"chosen": 0, "lost": 1, "other": 2}[verdict]
        order = (rank, *(-each for each in _precision(vip)), record.index)
        rows.append((order, Candidate(vip=str(vip.key), owner=vip.owner, verdict=verdict, rule=rule)))
    return [each for _, each in sorted(rows, key=lambda row: row[0])][:MOST]


def _concerns(vip: Vip, address: Address, port: int, version: int) -> bool:
    if vip.key.id[0] != version:
        return False
    if not vip.on_node_only and address in vip.key.prefix:
        return True
    return bool(vip.node_port) and vip.node_port == port


def _judge(
    vip: Vip, winner: Vip | None, address: Address, protocol: int, port: int, *, by_node_port: bool
) -> tuple[str, str]:
    at_address = not vip.on_node_only and address in vip.key.prefix
    if vip is winner:
        if by_node_port:
            return "chosen", f"no VIP has the address, and node port {vip.node_port} is its own"
        return "chosen", "the most specific that fits"
    if at_address:
        misses = _misses(vip, protocol, port)
        if misses:
            return "other", misses
        if winner is None:
            return "other", "the packet was not looked up"
        return "lost", _behind(vip, winner)
    if vip.key.protocol not in (Protocol.ANY, protocol):
        return "other", f"its node port is {vip.key.protocol.name}'s, and the packet is {_name(protocol)}"
    if winner is not None:
        return "lost", "a VIP's own address comes before node ports"
    return "other", f"its node port is {vip.node_port}, but no node port is looked for at {address}"
