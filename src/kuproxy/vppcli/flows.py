"""The text of `show flows`, a line for each flow, and the same as JSON."""

from __future__ import annotations

from typing import Any

from kuproxy.codes import Protocol
from kuproxy.model.report import FlowList, FlowReport
from kuproxy.model.vip import address_text

__all__ = ["flows_json", "show_flows"]

_HEAD = ("Proto", "Client", "Destination", "Pod", "State", "Age", "Expires", "Tier")


def _protocol(number: int) -> str:
    try:
        return Protocol(number).name.lower()
    except ValueError:
        return str(number)


def _seconds(seconds: float) -> str:
    """`9.3s`, `2m05s`, `3h07m`: as much as one cares for."""
    if seconds < 60:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}m{rest:02}s"
    return f"{minutes // 60}h{minutes % 60:02}m"


def _columns(flow: FlowReport) -> tuple[str, ...]:
    return (
        _protocol(flow.protocol),
        address_text(flow.client, flow.client_port),
        address_text(flow.destination, flow.destination_port),
        address_text(flow.pod, flow.pod_port),
        flow.state.label if flow.otherwise is None else f"tentative; {flow.otherwise} if refused",
        _seconds(flow.age_s),
        _seconds(flow.expires_in_s),
        _tier(flow),
    )


def _tier(flow: FlowReport) -> str:
    """`worker`, `kernel`, or the kernel's ways to the pod and to the client: `kernel peer/neighbour`."""
    shorter = any(way != "route" for way in flow.ways)
    return f"{flow.tier} {'/'.join(flow.ways)}" if shorter else flow.tier


def show_flows(page: FlowList) -> str:
    """Empty without flows; where there are more, the last line says how to go on."""
    if not page.flows:
        return ""
    rows = [_HEAD, *map(_columns, page.flows)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    if page.next is not None:
        lines.append(f"more: after {page.next[0]}:{page.next[1]}")
    return "".join(f"{line}\n" for line in lines)


def flows_json(page: FlowList) -> dict[str, Any]:
    """`next`, when it is not null, is what `after` takes."""
    flows = [
        {
            "worker": flow.worker,
            "slot": flow.slot,
            "vip": "" if flow.vip is None else str(flow.vip),
            "protocol": _protocol(flow.protocol),
            "client": str(flow.client),
            "client_port": flow.client_port,
            "destination": str(flow.destination),
            "destination_port": flow.destination_port,
            "pod": str(flow.pod),
            "pod_port": flow.pod_port,
            "source_port": flow.source_port,
            "state": flow.state.label,
            "otherwise": None if flow.otherwise is None else str(flow.otherwise),
            "age_s": flow.age_s,
            "expires_in_s": flow.expires_in_s,
            "tier": flow.tier,
            "ways": list(flow.ways),
        }
        for flow in page.flows
    ]
    return {"flows": flows, "next": None if page.next is None else f"{page.next[0]}:{page.next[1]}"}
