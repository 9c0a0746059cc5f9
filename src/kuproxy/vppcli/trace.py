"""The text of `show trace`, in VPP's manner: packet by packet, a line with time and node, and what it did indented."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from kuproxy.codes import REASON_TEXT, Node, Outcome, Protocol, Reason
from kuproxy.model.report import TracedPacket, TraceStep
from kuproxy.model.vip import Address, address_text

__all__ = ["show_trace", "step_facts", "trace_json"]

# Nodes that change neither the packet nor its record in a way that the header line would tell.
_DECIDING = (Node.LOOKUP, Node.NODEPORT4, Node.NODEPORT6, Node.BALANCE)
_TUNNELS = {4: "IPv4 in IP", 41: "IPv6 in IP", 47: "GRE"}


def show_trace(packets: Iterable[TracedPacket]) -> str:
    """Empty without packets."""
    lines: list[str] = []
    worker = -1
    for packet in packets:
        if packet.worker != worker:
            worker = packet.worker
            lines += [f"------------------- Start of worker {worker} -------------------"]
        lines += [f"Packet {packet.number}", ""]
        for step in packet.steps:
            lines.append(f"{_time(step.time_s)}: {step.node.label}")
            lines += [f"  {line}" for line in step_facts(step)]
        lines.append("")
    return "".join(f"{line}\n" for line in lines)


def _time(seconds: float) -> str:
    """VPP's hh:mm:ss:µs."""
    whole, micros = divmod(round(seconds * 1_000_000), 1_000_000)
    return f"{whole // 3600:02}:{whole // 60 % 60:02}:{whole % 60:02}:{micros:06}"


def _protocol(number: int) -> str:
    try:
        return Protocol(number).name if number else "protocol 0"
    except ValueError:
        return _TUNNELS.get(number, f"protocol {number}")


def _header(step: TraceStep) -> str:
    def end(address: Address | None, port: int) -> str:
        return "?" if address is None else address_text(address, port)

    source, destination = end(step.source, step.source_port), end(step.destination, step.destination_port)
    return f"{_protocol(step.protocol)} {source} -> {destination}{' fragment' if step.fragment else ''}"


def step_facts(step: TraceStep) -> Iterator[str]:
    """What a node did, a line each."""
    if step.node is Node.INPUT:
        yield f"interface {step.interface}, {step.bytes} bytes"
        if step.family:
            yield f"{_header(step)}, flow hash 0x{step.hash:08x}"
    elif step.node not in _DECIDING and step.family:
        yield _header(step)
    if step.node in (Node.LOOKUP, Node.NODEPORT4, Node.NODEPORT6) and step.vip_index:
        yield f"VIP [{step.vip_index}] {step.vip if step.vip is not None else 'deleted since'}"
    if step.node is Node.BALANCE and step.pod is not None:
        yield from _choice(step)
    if step.outcome is not Outcome.NONE:
        yield f"{step.outcome.name}: {REASON_TEXT[step.reason]}"


def _choice(step: TraceStep) -> Iterator[str]:
    yield f"{REASON_TEXT[step.event]}, pod {address_text(step.pod, step.pod_port)}" if step.pod else ""
    if step.event is not Reason.UNTRACKED:
        yield f"flow {step.flow}"
    if step.ring_slots and step.event is not Reason.EXISTING_SESSION:
        yield f"new-flow slot {step.ring_slot} of {step.ring_slots}" + (
            ", passed over: its reply would be ambiguous" if step.clash_avoided else ""
        )


def trace_json(packets: Iterable[TracedPacket]) -> list[dict[str, Any]]:
    """The same for programs: names for codes, text for addresses."""
    return [
        {
            "worker": packet.worker,
            "packet": packet.number,
            "steps": [_step_json(step) for step in packet.steps],
        }
        for packet in packets
    ]


def _step_json(step: TraceStep) -> dict[str, Any]:
    return {
        "node": step.node.label,
        "time": step.time_s,
        "outcome": step.outcome.name.lower(),
        "reason": step.reason.name,
        "interface": step.interface,
        "bytes": step.bytes,
        "protocol": step.protocol,
        "source": str(step.source) if step.source is not None else None,
        "source_port": step.source_port,
        "destination": str(step.destination) if step.destination is not None else None,
        "destination_port": step.destination_port,
        "hash": step.hash,
        "fragment": step.fragment,
        "vip": str(step.vip) if step.vip is not None else None,
        "vip_index": step.vip_index,
        "pod": str(step.pod) if step.pod is not None else None,
        "pod_port": step.pod_port,
        "event": step.event.name,
        "clash_avoided": step.clash_avoided,
        "flow": step.flow,
        "ring_slot": step.ring_slot,
        "ring_slots": step.ring_slots,
    }
