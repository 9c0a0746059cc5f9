"""Trace records with the names of what they refer to."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from kuproxy.codes import Node, Outcome, Reason
from kuproxy.control.compile import Compiler
from kuproxy.model.report import TracedPacket, TraceStep
from kuproxy.model.vip import VipKey


def _event(row: Mapping[str, Any]) -> Reason:
    if row["node"] != Node.BALANCE or row["pod"] is None:
        return Reason.NONE
    if row["untracked"]:
        return Reason.UNTRACKED
    return Reason.FIRST_PACKET if row["new_flow"] else Reason.EXISTING_SESSION


def _vip(compiler: Compiler, row: Mapping[str, Any]) -> VipKey | None:
    """The VIP, unless its index belongs to another by now."""
    record = compiler.record_at(row["vip_index"])
    if record is None or int(compiler.tables.vips[record.index]["generation"]) != row["vip_generation"]:
        return None
    return record.vip.key


_OWN = {"node", "outcome", "reason", "worker", "number", "vip_generation", "new_flow", "untracked"}


def build_trace(compiler: Compiler, rows: Iterable[Mapping[str, Any]]) -> Iterator[TracedPacket]:
    """One entry for each packet of each worker, in the order of their numbers; rows as engine.trace gives them."""
    packets: dict[tuple[int, int], list[TraceStep]] = {}
    for row in rows:
        step = TraceStep(
            node=Node(row["node"]),
            outcome=Outcome(row["outcome"]),
            reason=Reason(row["reason"]),
            vip=_vip(compiler, row),
            event=_event(row),
            **{name: value for name, value in row.items() if name not in _OWN},
        )
        packets.setdefault((row["worker"], row["number"]), []).append(step)
    for (worker, number), steps in sorted(packets.items(), key=lambda item: item[0]):
        yield TracedPacket(worker, number, tuple(steps))
