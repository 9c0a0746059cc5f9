"""An explanation for a terminal: first what happens, then why, in the order of the packet's way."""

from __future__ import annotations

from collections.abc import Iterator

from kuproxy.codes import Protocol
from kuproxy.explain.report import Counterfactual, EndpointVerdict, Explanation, FlowFacts, RingFacts
from kuproxy.model.vip import address_text, parse_address

__all__ = ["diagram", "headline", "outcome_text", "render"]

_FEW = 12  # endpoints and VIPs that are told one by one
_EVENTS = {
    "FIRST_PACKET": "a new flow",
    "EXISTING_SESSION": "a known flow",
    "UNTRACKED": "by the ring, not remembered",
}
_LONGEST = 40  # hexadecimal digits of a field


def _protocol(number: int) -> str:
    try:
        return Protocol(number).name.lower()
    except ValueError:
        return f"protocol {number}"


def headline(told: Explanation) -> str:
    """`tcp 40.0.0.1:1024 -> 90.0.0.1:80`."""
    packet = told.packet
    if not packet.family:
        return f"a frame of {packet.bytes} bytes"
    source = address_text(parse_address(packet.source), packet.source_port)
    destination = address_text(parse_address(packet.destination), packet.destination_port)
    fragment = " fragment" if packet.fragment else ""
    return f"{_protocol(packet.protocol)} {source} -> {destination}{fragment}"


def _result(outcome: str, reason: str, pod: str | None) -> str:
    if outcome == "transmit":
        return f"goes to {pod}" if pod else f"is answered or sent back ({reason})"
    if outcome == "pass":
        return f"is not ours, and passes untouched ({reason})"
    if outcome == "held":
        return f"waits ({reason})"
    return f"is dropped ({reason})"


def outcome_text(told: Explanation) -> str:
    """`goes to 10.0.0.1:80`."""
    return _result(told.outcome, told.reason, told.pod)


def render(told: Explanation, *, with_diagram: bool = False) -> str:
    """All of it, with a line end."""
    return "\n".join(_lines(told, with_diagram=with_diagram)) + "\n"


def _lines(told: Explanation, *, with_diagram: bool) -> Iterator[str]:
    packet = told.packet
    yield headline(told)
    yield f"  {_result(told.outcome, told.reason, told.pod)}: {told.sentence}"
    yield f"  interface {packet.interface}, {packet.bytes} bytes, flow hash 0x{packet.hash:08x}, worker {packet.worker}"
    if packet.family and told.comes_up:
        yield f"  as a pod's reply it comes up {told.comes_up}"
    if with_diagram:
        yield ""
        yield from diagram(told)
    yield from _vips(told)
    yield from _endpoints(told.endpoints, told.service)
    if told.affinity is not None:
        had = told.affinity.pod or "nobody that still serves"
        yield from ("", f"Affinity: {told.affinity.seconds:g} s; this client had {had}")
    if told.flow is not None:
        yield from _flow(told.flow, told.event)
    if told.ring is not None:
        yield from _ring(told.ring, told.event, told.pod)
    yield from ("", "Way through the graph:")
    for step in told.steps:
        yield f"  {step.node}"
        yield from (f"    {line}" for line in step.what)
    yield from _rewrites(told)
    if told.what_if is not None:
        yield from _counterfactual(told.what_if)


def _vips(told: Explanation) -> Iterator[str]:
    if not told.candidates:
        if told.packet.family:
            yield from ("", "VIPs: none has this address")
        return
    yield from ("", "VIPs:")
    for each in told.candidates[:_FEW]:
        mark = {"chosen": "*", "lost": "-", "other": " "}[each.verdict]
        owner = f" ({each.owner})" if each.owner != "ku" else ""
        yield f"  {mark} {each.vip}{owner}: {each.rule}"
    if len(told.candidates) > _FEW:
        yield f"    and {len(told.candidates) - _FEW} more"


def _endpoints(endpoints: list[EndpointVerdict], service: str | None) -> Iterator[str]:
    if service is not None or endpoints:
        yield from ("", f"Endpoints{f' of {service}' if service else ''}:")
    shown = [each for each in endpoints if each.chosen]
    shown += [each for each in endpoints if not each.chosen][: _FEW - len(shown)]
    for each in shown:
        mark = "*" if each.chosen else " "
        share = f", {each.slots} slots" if each.serves else ""
        yield f"  {mark} {each.pod}: {'serves' if each.serves else 'does not'}, {each.rule}{share}"
    if len(endpoints) > len(shown):
        serving = sum(each.serves for each in endpoints)
        yield f"    and {len(endpoints) - len(shown)} more; {serving} of {len(endpoints)} serve"


def _flow(flow: FlowFacts, event: str) -> Iterator[str]:
    yield ""
    if flow.known:
        otherwise = f" (tentative; {flow.otherwise} if refused)" if flow.otherwise else ""
        yield (
            f"Flow: known, {flow.state}, {flow.age_s:g} s old, for {flow.expires_in_s:g} s more, "
            f"at {flow.pod}{otherwise}"
        )
    else:
        yield f"Flow: not known; {_EVENTS.get(event, 'none was begun')}"
    for way in flow.ways:
        if way.live:
            mark = "*" if way.own else " "
            yield f"  {mark} slot {way.slot}: {way.flow}, {way.state}, for {way.expires_in_s:g} s"
    free = sum(not way.live for way in flow.ways)
    if free and not flow.known:
        yield f"    {free} of {len(flow.ways)} places of bucket {flow.bucket} are free"


def _ring(ring: RingFacts, event: str, pod: str | None) -> Iterator[str]:
    decides = "decides" if event in ("FIRST_PACKET", "UNTRACKED") else "is not asked"
    if decides == "decides" and ring.owner != pod:
        decides = "was passed over: affinity, or another pod's reply would be ambiguous"
    by = "the client's address" if ring.by == "source" else "the flow's hash"
    yield from ("", f"New-flow table: slot {ring.slot} of {ring.slots}, by {by}; it {decides}")
    yield f"  owner now: {ring.owner}"
    if ring.second_chance is not None:
        yield f"  a TCP connection that began elsewhere, and that it refuses, goes to: {ring.second_chance}"
    if ring.before is not None:
        same = " (the same)" if ring.before == ring.owner else ""
        yield f"  owner before the last change: {ring.before}{same}"
    elif not ring.compared:
        yield "  owner before the last change: not known, or the table had another size"
    else:
        yield "  owner before the last change: nobody"


def _short(digits: str | None) -> str:
    if digits is None:
        return "-"
    return digits if len(digits) <= _LONGEST else f"{digits[:_LONGEST]}... ({len(digits) // 2} bytes)"


def _rewrites(told: Explanation) -> Iterator[str]:
    if told.sent is None:
        return
    yield ""
    if not told.rewrites:
        yield "Rewrites: none"
        return
    yield "Rewrites:"
    for each in told.rewrites:
        old = each.old_text or _short(each.old)
        new = each.new_text or _short(each.new)
        digits = ""
        if each.old is not None and each.new is not None and each.old_text:
            digits = f"   {_short(each.old)} -> {_short(each.new)}"
        yield f"  {each.layer} {each.field}: {old} -> {new}{digits}"
    if told.pieces:
        yield f"  and {len(told.pieces)} further frames: it had to be cut"


def _counterfactual(other: Counterfactual) -> Iterator[str]:
    yield from ("", f"What if: {', '.join(other.changes)}")
    yield f"  the packet {_result(other.outcome, other.reason, other.pod)}"
    for line in other.differences or ["no difference"]:
        yield f"  {line}"


def diagram(told: Explanation) -> Iterator[str]:
    """The way as boxes, from the top down."""
    boxes = [headline(told)]
    if told.vip is not None:
        boxes.append(f"VIP {told.vip}")
    boxes += [step.node for step in told.steps]
    boxes.append(_result(told.outcome, told.reason, told.pod))
    width = max(map(len, boxes))
    for number, line in enumerate(boxes):
        if number:
            yield f"  {'|':^{width + 4}}".rstrip()
        yield f"  +{'-' * (width + 2)}+"
        yield f"  | {line:^{width}} |"
        yield f"  +{'-' * (width + 2)}+"
