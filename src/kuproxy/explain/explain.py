"""One packet, explained: run through the real graph on a shadow of the worker's memory, and told with its reasons."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kuproxy.codes import PROTOCOLS_WITH_PORTS, REASON_TEXT, HashMode, Node, Origin, Outcome, Protocol, Reason
from kuproxy.control.compile import VipRecord
from kuproxy.control.trace import build_trace
from kuproxy.engine.flows import former_of
from kuproxy.engine.packets import PacketIn
from kuproxy.engine.shadow import (
    Run,
    affinity_pod,
    bucket_rows,
    flow_at,
    origin_at,
    reply_slots,
    run_once,
    shadow_state,
    source_hash,
    worker_for,
)
from kuproxy.errors import ConfigError, Problem
from kuproxy.explain.candidates import candidates
from kuproxy.explain.dissect import rewrites
from kuproxy.explain.report import (
    Affinity,
    EndpointVerdict,
    Explanation,
    FlowFacts,
    PacketFacts,
    RingFacts,
    Step,
    Way,
)
from kuproxy.explain.services import ServiceFinder, policies, service_verdicts
from kuproxy.model.report import TracedPacket, TraceStep
from kuproxy.model.vip import Pod, Vip, address_text
from kuproxy.plane import Plane
from kuproxy.vppcli.trace import step_facts

__all__ = ["explain"]

_ORIGIN_WORDS = {Origin.POD: "pod", Origin.NODE: "node", Origin.OUTSIDE: "outside"}
_READING = {Node.INPUT, Node.FRAGMENT, Node.LOOKUP}  # what leaves the headers as they came
_RESTORING = {
    Node.NAT4_IN2OUT,
    Node.NAT6_IN2OUT,
    Node.NAT46_IN2OUT,
    Node.NAT64_IN2OUT,
}


def _nothing(_owner: str) -> None:
    return None


@dataclass(slots=True)
class _Subject:
    """The packet, its run, and where in the tables that leads."""

    plane: Plane
    number: int  # of the worker
    now: int
    packet: PacketIn
    run: Run
    trace: TracedPacket | None
    record: VipRecord | None
    read: TraceStep | None  # what was read of it
    looked: TraceStep | None  # what kp-balance was given
    origin: Origin


def explain(
    plane: Plane,
    packet: PacketIn,
    now: int,
    *,
    worker: int | None = None,
    services: ServiceFinder = _nothing,
) -> Explanation:
    """What would become of `packet` at `now` (ticks), and why.  Nothing changes by it.

    `worker` is the one that gets it; None: the one that steering would choose.  `services` finds the Service behind a
    VIP.  Raises ConfigError for a worker that is not there.
    """
    workers = len(plane.engine.memories)
    if worker is not None and not 0 <= worker < workers:
        raise ConfigError(Problem(f"there is no worker {worker}", field="worker", hint=f"0 to {workers - 1}"))
    subject = _run(plane, packet, now, worker or 0)
    if worker is None and workers > 1:
        own = _worker_of(subject)
        if own:
            subject = _run(plane, packet, now, own)
    return _tell(subject, services)


def _run(plane: Plane, packet: PacketIn, now: int, number: int) -> _Subject:
    engine = plane.engine
    run = run_once(engine.tables, shadow_state(engine.memories[number]), packet, now)
    trace = next(iter(build_trace(plane.compiler, run.rows)), None)
    steps = trace.steps if trace is not None else ()
    record = plane.compiler.record_at(run.vip) if run.vip else None
    # The last of them knows the ports of later fragments, too.
    reading = [step for step in steps if step.node in _READING and step.family]
    read = reading[-1] if reading else None
    looked = next((step for step in steps if step.node is Node.BALANCE), None)
    origin = Origin.OUTSIDE
    if read is not None and read.source is not None:
        origin = Origin(origin_at(engine.tables, read.source))
    return _Subject(plane, number, now, packet, run, trace, record, read, looked, origin)


def _worker_of(subject: _Subject) -> int:
    """As steering has it: by the client, which is the source of what goes to a VIP and the destination of a reply."""
    read = subject.read
    if read is None or read.source is None or read.destination is None:
        return 0
    tables = subject.plane.engine.tables
    nodes = {step.node for step in subject.trace.steps} if subject.trace else set()
    if nodes & _RESTORING:
        return worker_for(tables, read.destination, read.destination_port, read.protocol)
    return worker_for(tables, read.source, read.source_port, read.protocol)


def _tell(subject: _Subject, services: ServiceFinder) -> Explanation:
    run, record = subject.run, subject.record
    vip = record.vip if record is not None else None
    source = services(vip.owner) if vip is not None else None
    ring = _ring(subject)
    leaves = run.outcome in (Outcome.TRANSMIT, Outcome.PASS)
    pod = _pod_text(subject)
    event = subject.looked.event if subject.looked is not None else Reason.NONE
    return Explanation(
        packet=_packet(subject),
        candidates=_candidates(subject),
        vip=None if vip is None else str(vip.key),
        owner=None if vip is None else vip.owner,
        service=None if source is None else policies(source),
        endpoints=_endpoints(subject, services),
        affinity=_affinity(subject),
        flow=_flow(subject),
        ring=ring,
        steps=[Step(node=step.node.label, what=list(step_facts(step))) for step in _steps(subject)],
        comes_up=_comes_up(subject),
        event=event.name,
        pod=pod,
        outcome=run.outcome.name.lower(),
        reason=run.reason.name,
        sentence=REASON_TEXT[run.reason],
        rewrites=rewrites(subject.packet.data, run.data, vip.gue_port if vip is not None else 0)
        if leaves
        else [],
        sent=run.data.hex() if leaves else None,
        pieces=[each.hex() for each in run.pieces],
    )


def _steps(subject: _Subject) -> Sequence[TraceStep]:
    return subject.trace.steps if subject.trace is not None else ()


def _comes_up(subject: _Subject) -> str:
    """Of what no VIP claims and a pod may have sent. ICMP is left out: errors come up by what they embed."""
    read = subject.read
    if read is None or read.source is None or read.destination is None or subject.looked is not None:
        return ""
    records = subject.plane.compiler.records()
    pods = (pod.address for record in records for pod in _names(record).values())
    if read.protocol in (Protocol.ICMP, Protocol.ICMP6) or read.source not in pods:
        return ""
    return subject.plane.place_of_replies(read.source, read.destination)


def _packet(subject: _Subject) -> PacketFacts:
    read = subject.read
    return PacketFacts(
        family=read.family if read else 0,
        protocol=read.protocol if read else 0,
        source=str(read.source) if read else "",
        source_port=read.source_port if read else 0,
        destination=str(read.destination) if read else "",
        destination_port=read.destination_port if read else 0,
        bytes=len(subject.packet.data),
        fragment=read.fragment if read else False,
        interface=subject.packet.interface,
        hash=_hash(subject),
        worker=subject.number,
    )


def _hash(subject: _Subject) -> int:
    """The flow's, as the table was asked for it: kp-lookup changes it for echoes that cross to the other family."""
    last = subject.looked or subject.read
    return last.hash if last is not None else 0


def _candidates(subject: _Subject) -> list[Any]:
    read = subject.read
    if read is None or read.destination is None:
        return []
    by_node_port = any(step.node in (Node.NODEPORT4, Node.NODEPORT6) for step in _steps(subject))
    return candidates(
        subject.plane.compiler.records(),
        subject.run.vip,
        read.destination,
        read.protocol,
        read.destination_port,
        by_node_port=by_node_port,
    )


# ----------------------------------------------------------------------------------------------------- flow table


def _flow(subject: _Subject) -> FlowFacts | None:
    """The bucket, or for a reply the flow that it belongs to, before the packet came."""
    engine, now = subject.plane.engine, subject.now
    state = engine.states[subject.number]
    nodes = {step.node for step in _steps(subject)}
    if subject.looked is not None:
        rows = bucket_rows(engine.tables, state, _hash(subject), now)
        own = next((row["slot"] for row in rows if _is_own(subject, row)), -1)
    elif nodes & _RESTORING and subject.read is not None:
        rows = [flow_at(engine.tables, state, slot, now) for slot in reply_slots(state, subject.read.hash)]
        own = next((row["slot"] for row in rows if _is_reply(subject.read, row)), -1)
    else:
        return None
    ways = [_way(row, own) for row in rows]
    found = next((row for row in rows if row["slot"] == own), None)
    bucket = (_hash(subject) if subject.looked else own) & (len(state.entries) // 4 - 1)
    if found is None:
        return FlowFacts(known=False, bucket=bucket, ways=ways)
    return FlowFacts(
        known=True,
        bucket=own // 4,
        ways=ways,
        pod=address_text(found["pod"], found["pod_port"]),
        state=found["state"].label,
        otherwise=_otherwise(subject, own),
        age_s=found["age_s"],
        expires_in_s=found["expires_in_s"],
    )


def _otherwise(subject: _Subject, slot: int) -> str | None:
    engine, record = subject.plane.engine, subject.record
    state = engine.states[subject.number]
    index = former_of(engine.tables, state, state.entries[slot], state.flows[slot])
    pod = record.pod_at(index) if record is not None else None
    return None if pod is None else str(pod)


def _is_own(subject: _Subject, row: dict[str, Any]) -> bool:
    read, looked = subject.read, subject.looked
    if not row["live"] or read is None or looked is None:
        return False
    return bool(
        row["hash"] == looked.hash
        and row["vip_index"] == subject.run.vip
        and (row["client"], row["destination"]) == (read.source, read.destination)
        and row["protocol"] == read.protocol
        and (read.protocol not in PROTOCOLS_WITH_PORTS or row["client_port"] == read.source_port)
        and row["destination_port"] == read.destination_port
    )


def _is_reply(read: TraceStep, row: dict[str, Any]) -> bool:
    """Their hashes agree already: whose reply it is, only flows with the pod's address and ports can tell."""
    return bool(
        row["live"]
        and row["protocol"] in (read.protocol, Protocol.ICMP, Protocol.ICMP6)
        and row["pod"] == read.source
        and row["source_port"] == read.destination_port
    )


def _way(row: dict[str, Any], own: int) -> Way:
    if not row["live"]:
        return Way(slot=row["slot"], live=False, own=False)
    try:
        protocol = Protocol(row["protocol"]).name.lower()
    except ValueError:
        protocol = f"protocol {row['protocol']}"
    ends = f"{address_text(row['client'], row['client_port'])} -> " + address_text(
        row["destination"], row["destination_port"]
    )
    return Way(
        slot=row["slot"],
        live=True,
        own=row["slot"] == own,
        flow=f"{protocol} {ends} at {address_text(row['pod'], row['pod_port'])}",
        state=row["state"].label,
        expires_in_s=row["expires_in_s"],
    )


# ----------------------------------------------------------------------------------------------- pods and the ring


def _names(record: VipRecord) -> dict[int, Pod]:
    known = {index: pod for pod, index in (*record.draining.items(), *record.pods.items())}
    return known | record.flushed


def _pod_text(subject: _Subject) -> str | None:
    if not subject.run.pod:
        return None
    pod = _names(subject.record).get(subject.run.pod) if subject.record is not None else None
    if pod is None:
        step = next((step for step in reversed(_steps(subject)) if step.pod is not None), None)
        return None if step is None or step.pod is None else address_text(step.pod, step.pod_port)
    return str(pod)


def _ring(subject: _Subject) -> RingFacts | None:
    """The slot that the packet's hash falls on, whether or not it was needed."""
    record, looked, read = subject.record, subject.looked, subject.read
    if record is None or looked is None or read is None or read.source is None:
        return None
    compiler = subject.plane.compiler
    owners = compiler.ring_for(record, subject.origin)
    if owners is None:
        return None
    by_source = record.vip.hash_mode is HashMode.SOURCE
    # By source: the client's address alone.
    state = subject.plane.engine.states[subject.number]
    value = source_hash(state, read.source) if by_source else looked.hash
    slot = value & (len(owners) - 1)
    former = compiler.former_rings.former(record.vip.key)
    split_outside = record.vip.outside_pods is not None and subject.origin is Origin.OUTSIDE
    compared = former is not None and len(former.owners) == len(owners) and not split_outside
    before = former.pods.get(int(former.owners[slot])) if former is not None and compared else None
    names = _names(record)
    owner = names.get(int(owners[slot]))
    second = names.get(compiler.former_pod(record, subject.origin, slot))
    return RingFacts(
        slots=len(owners),
        slot=slot,
        owner=str(owner) if owner is not None else "",
        by="source" if by_source else "flow",
        origin=_ORIGIN_WORDS[subject.origin],
        before=None if before is None else str(before),
        compared=compared,
        second_chance=None if second is None or second == owner else str(second),
    )


def _affinity(subject: _Subject) -> Affinity | None:
    record, read = subject.record, subject.read
    if record is None or not record.vip.affinity_s or read is None or read.source is None:
        return None
    engine = subject.plane.engine
    state = engine.states[subject.number]
    index = affinity_pod(engine.tables, state, record.index, read.source, subject.now)
    pod = _names(record).get(index)
    return Affinity(seconds=record.vip.affinity_s, pod=None if pod is None else str(pod))


def _endpoints(subject: _Subject, services: ServiceFinder) -> list[EndpointVerdict]:
    record = subject.record
    if record is None:
        return []
    owners = subject.plane.compiler.ring_for(record, subject.origin)
    names = _names(record)
    slots: dict[str, int] = {}
    if owners is not None:
        for index, count in zip(*map(list, np.unique(owners, return_counts=True)), strict=True):
            slots[str(names.get(int(index), ""))] = int(count)
    chosen = _pod_text(subject)
    told = []
    for name, serves, rule in _rules(record, subject.origin, services):
        told.append(
            EndpointVerdict(
                pod=name, serves=serves, rule=rule, slots=slots.get(name, 0), chosen=name == chosen
            )
        )
    return told


def _rules(record: VipRecord, origin: Origin, services: ServiceFinder) -> Iterator[tuple[str, bool, str]]:
    """(pod, whether it gets new flows, rule): of the Service's endpoints, else of the VIP's pods; then what drains."""
    vip = record.vip
    source = services(vip.owner)
    told: set[str] = set()
    rows: Iterable[tuple[Pod, bool, str]] = ()
    if source is not None:
        rows = [
            (each.candidate.pod, each.serves, each.rule) for each in service_verdicts(source, vip, origin)
        ]
    if not rows:
        rows = list(_configured(vip, origin))
    for pod, serves, rule in rows:
        name = address_text(pod.address, vip.pod_port(pod))
        told.add(name)
        yield name, serves, rule
    for pod in sorted(record.draining):
        if str(pod) not in told:
            yield str(pod), False, "removed; it keeps its flows until they end"
    for pod in sorted(record.flushed.values()):
        if str(pod) not in told:
            yield str(pod), False, "removed, and its flows with it"


def _configured(vip: Vip, origin: Origin) -> Iterator[tuple[Pod, bool, str]]:
    serving = vip.pods_for(origin)
    for pod in vip.all_pods:
        if not any(pod.is_at(each) for each in serving):
            yield pod, False, f"not for clients from {_ORIGIN_WORDS[origin]}"
        elif not pod.weight:
            yield pod, False, "its weight is 0: no new flows"
        else:
            yield pod, True, f"configured, weight {pod.weight}"
