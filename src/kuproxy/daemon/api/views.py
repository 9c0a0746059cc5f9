"""What the API answers: records made from the controller's report.

Lists are paged: `next`, when it is not null, goes into the next request's `after`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from kuproxy.codes import REASON_TEXT, Outcome
from kuproxy.daemon.control import Answer, Controller
from kuproxy.daemon.schema import Conf, Interface, VipSpec, spec_of
from kuproxy.errors import KuError, Problem
from kuproxy.model.report import FlowList, Report, VipReport

__all__ = [
    "Counter", "Counters", "Error", "Fault", "Health", "Picture", "SettingsView", "View", "error_of", "faults_of",
]  # fmt: skip


class View(msgspec.Struct, kw_only=True):
    """Base of everything that is only ever written."""


class Picture(View):
    """An SVG document."""

    svg: str


class Fault(View):
    """One thing that is wrong; `line` counts from 1, 0 when there is none."""

    message: str
    file: str = ""
    line: int = 0
    field: str = ""
    hint: str = ""


class Error(View):
    """Every refusal: one line that says it all, and the single faults."""

    error: str
    problems: list[Fault] = []


class Changed(View):
    """What a change did to the VIPs, and the generation that contains it."""

    added: int
    changed: int
    removed: int
    generation: int

    @classmethod
    def of(cls, answer: Answer) -> Changed:
        return cls(
            added=answer.added, changed=answer.changed, removed=answer.removed, generation=answer.generation
        )


class PodView(View):
    address: str
    port: int  # as the pod sees it
    weight: int
    slots: int  # of the VIP's new-flow table
    outside_slots: int | None  # of that for clients from outside; null: there is but one
    flows: int
    draining: bool
    counters: dict[str, int]


class VipView(View):
    """A VIP as it is served, with what was counted."""

    index: int
    vip: VipSpec
    owner: str
    sources: list[str]
    removed: bool  # deleted, its flows not yet forgotten
    flows: int
    counters: dict[str, int]
    pods: list[PodView]


class VipPage(View):
    vips: list[VipView]
    next: int | None


class ServiceView(View):
    """The VIPs of one owner together."""

    name: str
    vips: list[str]
    pods: list[str]
    flows: int
    counters: dict[str, int]


class Services(View):
    services: list[ServiceView]


class PodOfVip(View):
    vip: str
    pod: PodView


class Pods(View):
    pods: list[PodOfVip]


class WorkerView(View):
    index: int
    flows: int
    capacity: int
    states: dict[str, int]


class Counter(View):
    node: str
    reason: str
    text: str
    count: int


class Counters(View):
    """What the nodes of the graph counted, and what became of all packets."""

    received: int
    outcomes: dict[str, int]
    nodes: list[Counter]
    workers: list[WorkerView]


class SettingsView(View):
    """`conf` is what commands have set; `effective` is that over the files and the defaults."""

    conf: Conf
    effective: Conf


class Interfaces(View):
    """`own` were marked by commands, `effective` by all sources."""

    own: list[Interface]
    effective: list[Interface]


class FlowView(View):
    worker: int
    slot: int
    vip: str
    protocol: int
    client: str
    client_port: int
    destination: str
    destination_port: int
    pod: str
    pod_port: int
    source_port: int
    state: str
    otherwise: str | None  # the pod that the flow moves to if `pod` refuses it
    age_s: float
    expires_in_s: float
    tier: str
    ways: list[str]


class FlowPage(View):
    flows: list[FlowView]
    next: str | None


class Flushed(View):
    flows: int


class Trace(View):
    packets: list[dict[str, Any]]


class Output(View):
    """What command lines did and said; `shows` holds each `show` for programs, in the order of the lines."""

    changed: Changed
    output: str
    shows: list[dict[str, Any]]


class ProcessView(View):
    role: str  # keeper, control, nursery, worker
    pid: int


class Upgrade(View):
    """What the installed version would be, or is about to take over."""

    running: str
    version: str
    same_layout: bool
    losses: list[str]  # what is remembered and has no place there


class Health(View):
    """`ready`: forwarding, and every worker runs and has adopted what was published."""

    ready: bool
    version: str
    generation: int
    adopted: int
    adoption_s: float | None
    vips: int
    workers: int
    processes: list[ProcessView]


def faults_of(problems: Iterable[Problem]) -> list[Fault]:
    return [Fault(message=p.message, file=p.file, line=p.line, field=p.field, hint=p.hint) for p in problems]


def error_of(error: KuError) -> Error:
    """One line, and the faults apart."""
    problems = getattr(error, "problems", ())
    return Error(error="; ".join(str(error).splitlines()), problems=faults_of(problems))


def pod_views(entry: VipReport) -> list[PodView]:
    return [
        PodView(
            address=str(pod.address),
            port=pod.port or entry.vip.target_port,
            weight=pod.weight,
            slots=pod.slots,
            outside_slots=pod.outside_slots,
            flows=pod.flows,
            draining=pod.draining,
            counters={counter.name.lower(): count for counter, count in pod.counters.items()},
        )
        for pod in entry.pods
    ]


def vip_view(controller: Controller, entry: VipReport) -> VipView:
    held = controller.plane.store.holders(entry.vip.key)
    pods = pod_views(entry)
    return VipView(
        index=entry.index,
        vip=spec_of(entry.vip),
        owner=entry.vip.owner,
        sources=list(held),
        removed=entry.removed,
        flows=sum(pod.flows for pod in pods),
        counters={counter.name.lower(): count for counter, count in entry.counters.items()},
        pods=pods,
    )


def services_view(report: Report) -> Services:
    """By owner, in the order of their first VIPs."""
    found: dict[str, ServiceView] = {}
    for entry in report.vips:
        name = entry.vip.owner
        if name != "ku":
            name = name.rpartition(":")[0] or name
        service = found.setdefault(name, ServiceView(name=name, vips=[], pods=[], flows=0, counters={}))
        service.vips.append(str(entry.vip.key))
        for pod in entry.pods:
            service.flows += pod.flows
            if not pod.draining and str(pod.address) not in service.pods:
                service.pods.append(str(pod.address))
        for counter, count in entry.counters.items():
            label = counter.name.lower()
            service.counters[label] = service.counters.get(label, 0) + count
    return Services(services=list(found.values()))


def counters_view(controller: Controller, report: Report) -> Counters:
    totals = controller.plane.totals()
    return Counters(
        received=totals.received,
        outcomes={outcome.name.lower(): totals.outcomes[outcome] for outcome in Outcome if outcome},
        nodes=[
            Counter(
                node=each.node.label, reason=each.reason.name, text=REASON_TEXT[each.reason], count=each.count
            )
            for each in report.nodes
        ],
        workers=[
            WorkerView(
                index=worker.index,
                flows=worker.flows,
                capacity=worker.capacity,
                states={state.label: count for state, count in worker.states.items()},
            )
            for worker in report.workers
        ],
    )


def effective_conf(controller: Controller) -> Conf:
    settings = controller.settings
    said: dict[str, Any] = {}
    if settings.timeout_s is not None:
        said["timeout"] = settings.timeout_s
    for name in ("ip4_src_address", "ip6_src_address"):
        address = getattr(settings, name)
        if address is not None:
            said[name] = str(address)
    return Conf(
        buckets=settings.buckets,
        timeouts={state.label: seconds for state, seconds in settings.timeouts.items()},
        masquerade=[str(address) for address in settings.masquerade],
        pod_ranges=[str(prefix) for prefix in settings.pod_ranges],
        nat46_prefix=str(settings.nat46_prefix),
        nat64_pool=str(settings.nat64_pool),
        nat64_ports=settings.nat64_ports,
        translation_mtu=settings.translation_mtu,
        flow_hash=str(settings.flow_hash),
        reply_path=settings.reply_path.value,
        second_chance=settings.second_chance_s,
        **said,
    )


def health_view(controller: Controller, version: str) -> Health:
    controller.note_adoption()
    engine = controller.plane.engine
    return Health(
        ready=not controller.not_ready,
        version=version,
        generation=controller.generation,
        adopted=engine.acknowledged(),
        adoption_s=controller.adoption_s,
        vips=len(controller.plane.store),
        workers=len(engine.states),
        processes=[ProcessView(role=role, pid=pid) for role, pid in controller.forwarder.processes()],
    )


def flow_page(page: FlowList) -> FlowPage:
    flows = [
        FlowView(
            worker=flow.worker,
            slot=flow.slot,
            vip=str(flow.vip) if flow.vip is not None else "",
            protocol=flow.protocol,
            client=str(flow.client),
            client_port=flow.client_port,
            destination=str(flow.destination),
            destination_port=flow.destination_port,
            pod=str(flow.pod),
            pod_port=flow.pod_port,
            source_port=flow.source_port,
            state=flow.state.label,
            otherwise=None if flow.otherwise is None else str(flow.otherwise),
            age_s=flow.age_s,
            expires_in_s=flow.expires_in_s,
            tier=flow.tier,
            ways=list(flow.ways),
        )
        for flow in page.flows
    ]
    return FlowPage(flows=flows, next=None if page.next is None else f"{page.next[0]}:{page.next[1]}")
