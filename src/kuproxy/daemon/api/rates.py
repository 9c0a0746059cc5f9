"""What moves now: rates per VIP, per pod and of the whole, for those who look on.

Rates are over the last second or so, `interval_s` says it; they are null in the first answer after a pause, because
nobody has counted meanwhile: ask again a second later.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
from msgspec import Meta

from kuproxy import __version__
from kuproxy.codes import REASON_TEXT, Node, Outcome, PodCounter, Reason, VipCounter, end_of
from kuproxy.control.compile import VipRecord
from kuproxy.daemon.api.views import View
from kuproxy.daemon.control import Controller
from kuproxy.daemon.sampler import Span
from kuproxy.daemon.schema import Record, Text, VipRef, key_of
from kuproxy.errors import ConfigError, Problem

__all__ = [
    "Overview", "PodRatesOfVip", "RatesQuery", "VipRatesPage",
    "get_overview", "get_pod_rates", "get_rates", "record_of",
]  # fmt: skip

_BITS = 8


class RatesQuery(Record, frozen=True):
    """`find`: part of a VIP or of its owner's name; `by` sorts, the largest first (`name`: a to z)."""

    find: Text = ""
    by: Literal["packets", "bits", "new_flows", "flows", "pods", "name"] = "packets"
    limit: Annotated[int, Meta(ge=1, le=1000)] = 100
    skip: Annotated[int, Meta(ge=0, le=1 << 20)] = 0


class Traffic(View):
    """Per second. Packets and bits as IP, as received; `new_flows` is created, not alive."""

    to_pod_packets: float
    to_pod_bits: float
    from_pod_packets: float
    from_pod_bits: float
    new_flows: float


class VipRates(View):
    """One VIP; `pods` without those that drain."""

    index: int
    vip: str
    prefix: str
    protocol: str
    port: int
    type: str
    owner: str
    pods: int
    draining: int
    flows: int
    rates: Traffic | None


class VipRatesPage(View):
    """`total` fit the query, `vips` of them are here; `next` goes into the next request's `skip`."""

    interval_s: float | None
    total: int
    vips: list[VipRates]
    next: int | None


class PodRates(View):
    address: str
    port: int  # as the pod sees it
    weight: int
    slots: int
    flows: int
    draining: bool
    rates: Traffic | None


class PodRatesOfVip(View):
    interval_s: float | None
    vip: str
    pods: list[PodRates]


class Drop(View):
    """Packets that a node dropped for one reason."""

    node: str
    reason: str
    text: str
    count: int
    per_s: float | None


class WorkerRates(View):
    """`vector_size`: packets per vector; `idle_share`: of the time; `ring_drops` were lost before the worker."""

    index: int
    flows: int
    capacity: int
    received_per_s: float | None
    vectors_per_s: float | None
    vector_size: float | None
    idle_share: float | None
    ring_drops: int
    ring_drops_per_s: float | None
    transmit_failures: int


class Overview(View):
    """The whole of it; `outcomes` per second, `drops` the busiest first."""

    interval_s: float | None
    version: str
    generation: int
    adopted: int
    vips: int
    flows: int
    received: int
    received_per_s: float | None
    outcomes: dict[str, int]
    outcomes_per_s: dict[str, float] | None
    new_flows_per_s: float | None
    drops: list[Drop]
    workers: list[WorkerRates]


def record_of(controller: Controller, query: VipRef) -> VipRecord:
    """The VIP that a query names.  Raises ConfigError."""
    key = key_of(query.prefix, query.protocol, query.port)
    record = controller.plane.compiler.record(key)
    if record is None:
        raise ConfigError(Problem(f"no VIP {key}", field="prefix"))
    return record


def _vip_traffic(rates: np.ndarray) -> Traffic:
    """From float64[8], columns VipCounter."""
    to_pod = (
        rates[VipCounter.NEXT_PACKET] + rates[VipCounter.FIRST_PACKET] + rates[VipCounter.UNTRACKED_PACKET]
    )
    return Traffic(
        to_pod_packets=float(to_pod),
        to_pod_bits=_BITS * float(rates[VipCounter.TO_POD_BYTES]),
        from_pod_packets=float(rates[VipCounter.FROM_POD_PACKETS]),
        from_pod_bits=_BITS * float(rates[VipCounter.FROM_POD_BYTES]),
        new_flows=float(rates[VipCounter.FIRST_PACKET]),
    )


def _pod_traffic(rates: np.ndarray) -> Traffic:
    """From float64[8], columns PodCounter."""
    return Traffic(
        to_pod_packets=float(rates[PodCounter.TO_POD_PACKETS]),
        to_pod_bits=_BITS * float(rates[PodCounter.TO_POD_BYTES]),
        from_pod_packets=float(rates[PodCounter.FROM_POD_PACKETS]),
        from_pod_bits=_BITS * float(rates[PodCounter.FROM_POD_BYTES]),
        new_flows=float(rates[PodCounter.FLOWS]),
    )


def _row(rows: np.ndarray | None, index: int) -> np.ndarray | None:
    """None also for what is younger than the sample."""
    return rows[index] if rows is not None and index < len(rows) else None


def _found(controller: Controller, find: str) -> list[VipRecord]:
    records = [record for record in controller.plane.compiler.records() if not record.removed]
    wanted = find.strip().lower()
    if wanted:
        records = [each for each in records if wanted in f"{each.vip.key} {each.vip.owner}".lower()]
    return records


def _sorted(records: list[VipRecord], by: str, span: Span, rates: np.ndarray | None) -> list[VipRecord]:
    """Equal ones by index, so that pages do not overlap."""
    if by == "name":
        return sorted(records, key=lambda each: (each.vip.owner, str(each.vip.key)))
    if by == "pods":
        return sorted(records, key=lambda each: (-len(each.pods), each.index))
    indices = np.array([each.index for each in records], np.int64)
    if by == "flows":
        weights = span.now.vip_flows.astype(np.float64)
    elif rates is None:
        weights = np.zeros(1)
    elif by == "new_flows":
        weights = rates[:, VipCounter.FIRST_PACKET]
    elif by == "bits":
        weights = rates[:, VipCounter.TO_POD_BYTES] + rates[:, VipCounter.FROM_POD_BYTES]
    else:
        columns = [*range(VipCounter.NO_SERVER), VipCounter.FROM_POD_PACKETS]
        weights = rates[:, columns].sum(axis=1)
    values = np.array([weights[index] if index < len(weights) else 0.0 for index in indices.tolist()])
    order = np.lexsort((indices, -values))
    return [records[position] for position in order.tolist()]


def get_rates(controller: Controller, query: RatesQuery, _body: None) -> VipRatesPage:
    def make(span: Span) -> VipRatesPage:
        rates = span.rates(lambda sample: sample.vips)
        records = _sorted(_found(controller, query.find), query.by, span, rates)
        page = records[query.skip : query.skip + query.limit]
        end = query.skip + len(page)
        return VipRatesPage(
            interval_s=span.seconds,
            total=len(records),
            vips=[_vip_rates(record, span, rates) for record in page],
            next=end if end < len(records) else None,
        )

    return controller.sampler.answer(query, make)


def _vip_rates(record: VipRecord, span: Span, rates: np.ndarray | None) -> VipRates:
    key = record.vip.key
    flows = span.now.vip_flows
    row = _row(rates, record.index)
    return VipRates(
        index=record.index,
        vip=str(key),
        prefix=str(key.prefix),
        protocol=key.protocol.name.lower(),
        port=key.port,
        type=record.vip.label,
        owner=record.vip.owner,
        pods=len(record.pods),
        draining=len(record.draining),
        flows=int(flows[record.index]) if record.index < len(flows) else 0,
        rates=None if row is None else _vip_traffic(row),
    )


def get_pod_rates(controller: Controller, query: VipRef, _body: None) -> PodRatesOfVip:
    record = record_of(controller, query)

    def make(span: Span) -> PodRatesOfVip:
        rates = span.rates(lambda sample: sample.pods)
        slots = controller.plane.compiler.slots_of(record)
        weights = {(pod.address, record.vip.pod_port(pod)): pod.weight for pod in record.vip.pods}
        pods = []
        for places, draining in ((record.pods, False), (record.draining, True)):
            for pod, index in sorted(places.items()):
                row = _row(rates, index)
                flows = span.now.pod_flows
                pods.append(
                    PodRates(
                        address=str(pod.address),
                        port=pod.port,
                        weight=0 if draining else weights.get((pod.address, pod.port), pod.weight),
                        slots=slots.get(index, 0),
                        flows=int(flows[index]) if index < len(flows) else 0,
                        draining=draining,
                        rates=None if row is None else _pod_traffic(row),
                    )
                )
        return PodRatesOfVip(interval_s=span.seconds, vip=str(record.vip.key), pods=pods)

    return controller.sampler.answer(("pods", query), make)


def _drops(span: Span) -> list[Drop]:
    rates = span.rates(lambda sample: sample.counters)
    drops = []
    for row, column in np.argwhere(span.now.counters).tolist():
        node, reason = Node(row), Reason(column)
        if end_of(node, reason) is Outcome.DROP:
            drops.append(
                Drop(
                    node=node.label,
                    reason=reason.name,
                    text=REASON_TEXT[reason],
                    count=int(span.now.counters[node, reason]),
                    per_s=None if rates is None else float(rates[node, reason]),
                )
            )
    return sorted(drops, key=lambda drop: (-(drop.per_s or 0.0), -drop.count))


def _workers(span: Span, flows: tuple[int, ...], capacity: tuple[int, ...]) -> list[WorkerRates]:
    found = []
    seconds = span.seconds
    for number, now in enumerate(span.now.workers):
        grown: dict[str, int] | None = None
        if span.before is not None and seconds and number < len(span.before.workers):
            grown = {name: max(0, count - span.before.workers[number][name]) for name, count in now.items()}

        def per_s(name: str, grown: dict[str, int] | None = grown) -> float | None:
            return None if grown is None or seconds is None else grown[name] / seconds

        vectors = grown["vectors"] if grown is not None else 0
        # A worker without a loop of its own never waits. The others count when they have waited, 50 ms at most.
        idle = per_s("idle_ns") if now["polls"] else None
        found.append(
            WorkerRates(
                index=number,
                flows=flows[number],
                capacity=capacity[number],
                received_per_s=per_s("received_packets"),
                vectors_per_s=per_s("vectors"),
                vector_size=grown["received_packets"] / vectors if grown is not None and vectors else None,
                idle_share=None if idle is None else min(idle / 1e9, 1.0),
                ring_drops=now["ring_drops"],
                ring_drops_per_s=per_s("ring_drops"),
                transmit_failures=now["transmit_failures"],
            )
        )
    return found


def get_overview(controller: Controller, _query: Any, _body: None) -> Overview:
    def make(span: Span) -> Overview:
        totals = controller.plane.totals()
        ends = np.array([[int(end_of(node, reason)) for reason in Reason] for node in Node])
        columns = np.ix_([int(node) for node in Node], [int(reason) for reason in Reason])
        counted = span.rates(lambda sample: sample.counters)
        rates = None if counted is None else counted[columns]
        per_s = None
        if rates is not None:
            kinds = (outcome for outcome in Outcome if outcome)
            per_s = {kind.name.lower(): float(rates[ends == kind].sum()) for kind in kinds}
        vips = span.rates(lambda sample: sample.vips)
        given = span.rates(lambda sample: sample.given)
        return Overview(
            interval_s=span.seconds,
            version=__version__,
            generation=controller.generation,
            adopted=controller.plane.engine.acknowledged(),
            vips=len(controller.plane.store),
            flows=sum(totals.flows),
            received=totals.received,
            received_per_s=None if given is None else float(given[Node.INPUT]),
            outcomes={kind.name.lower(): totals.outcomes[kind] for kind in Outcome if kind},
            outcomes_per_s=per_s,
            new_flows_per_s=None if vips is None else float(vips[:, VipCounter.FIRST_PACKET].sum()),
            drops=_drops(span),
            workers=_workers(span, totals.flows, totals.capacity),
        )

    return controller.sampler.answer("overview", make)
