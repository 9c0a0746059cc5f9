"""Prometheus' view: the workers' counters, read at the moment of the scrape.

Nothing is counted here.  Help texts are the sentences of `codes`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_1_0_0, generate_latest

from kuproxy import __version__
from kuproxy.codes import (
    POD_COUNTER_TEXT,
    REASON_TEXT,
    VIP_COUNTER_TEXT,
    Outcome,
    PodCounter,
    VipCounter,
    end_of,
)
from kuproxy.daemon.control import Controller
from kuproxy.daemon.flow_cache import GIVEN_BACK
from kuproxy.engine.memory import worker_activity
from kuproxy.model.report import CacheReport, Report

__all__ = ["exposition"]

_VIP_NAMES = {
    VipCounter.NEXT_PACKET: "next_packets",
    VipCounter.FIRST_PACKET: "first_packets",
    VipCounter.UNTRACKED_PACKET: "untracked_packets",
    VipCounter.NO_SERVER: "no_server_packets",
    VipCounter.TO_POD_BYTES: "to_pod_bytes",
    VipCounter.FROM_POD_PACKETS: "from_pod_packets",
    VipCounter.FROM_POD_BYTES: "from_pod_bytes",
    VipCounter.EVICTED: "evicted_flows",
}
_POD_NAMES = {
    PodCounter.TO_POD_PACKETS: "to_pod_packets",
    PodCounter.TO_POD_BYTES: "to_pod_bytes",
    PodCounter.FROM_POD_PACKETS: "from_pod_packets",
    PodCounter.FROM_POD_BYTES: "from_pod_bytes",
    PodCounter.FLOWS: "new_flows",
}
_ACTIVITY_TEXT = {
    "vectors": "vectors of packets that went through the graph; received packets by vectors is their size",
    "polls": "times that there was no packet to receive",
    "received_packets": "packets that the driver received",
    "transmitted_packets": "packets that the driver handed on",
    "transmit_failures": "packets that the driver could not hand on",
    "ring_drops": "packets lost before the worker because it was too slow",
}


class _Collector:
    def __init__(self, controller: Controller) -> None:
        self._controller = controller

    def collect(self) -> Iterator[Metric]:
        report = self._controller.plane.report()
        yield from self._overall()
        yield from _vips(report)
        yield from _pods(report)
        nodes = CounterMetricFamily(
            "kuproxy_node_events",
            "What the nodes of the graph counted; `text` says it in words, `outcome` what became of the packets, none: "
            "an event beside that",
            labels=["node", "reason", "outcome", "text"],
        )
        for each in report.nodes:
            outcome = end_of(each.node, each.reason).name.lower()
            labels = [each.node.label, each.reason.name, outcome, REASON_TEXT[each.reason]]
            nodes.add_metric(labels, each.count)
        yield nodes
        yield from self._workers(report)
        yield from self._announcing()
        if report.cache is not None:
            yield from _cache(report.cache)
        if report.replies is not None:
            yield CounterMetricFamily(
                "kuproxy_replies_refused",
                "Packets in a pod's name that came in where this node does not send to that pod; left to its own stack",
                value=report.replies.refused,
            )

    def _overall(self) -> Iterator[Metric]:
        controller = self._controller
        controller.note_adoption()
        totals = controller.plane.totals()
        build = GaugeMetricFamily("kuproxy_build_info", "Always 1", labels=["version"])
        build.add_metric([__version__], 1)
        yield build
        forwards = controller.ready and not controller.forwarder.missing()
        yield GaugeMetricFamily("kuproxy_ready", "Whether it forwards", value=int(forwards))
        yield GaugeMetricFamily(
            "kuproxy_config_generation", "Generation of the tables as published", value=controller.generation
        )
        yield GaugeMetricFamily(
            "kuproxy_config_generation_adopted",
            "Generation that every worker has adopted",
            value=controller.plane.engine.acknowledged(),
        )
        if controller.adoption_s is not None:
            yield GaugeMetricFamily(
                "kuproxy_config_adoption_seconds",
                "From the last change to when every worker was seen to have adopted it",
                value=controller.adoption_s,
            )
        yield CounterMetricFamily("kuproxy_received_packets", "Packets received", value=totals.received)
        outcomes = CounterMetricFamily(
            "kuproxy_outcome_packets", "What became of the packets", labels=["outcome"]
        )
        for outcome in Outcome:
            if outcome is not Outcome.NONE:
                outcomes.add_metric([outcome.name.lower()], totals.outcomes[outcome])
        yield outcomes

    def _announcing(self) -> Iterator[Metric]:
        announcing = self._controller.announcing
        if announcing.settings is None:
            return
        prefixes, _ = announcing.servable(self._controller.plane.store, self._controller.generation)
        left_alone = announcing.drained or announcing.stopping
        yield GaugeMetricFamily(
            "kuproxy_announce_servable_prefixes", "Prefixes of VIPs that this node can serve", value=len(prefixes)
        )
        yield GaugeMetricFamily(
            "kuproxy_announce_drained",
            "Whether nothing shall be announced, by order or for a stop",
            value=int(left_alone),
        )
        announced = GaugeMetricFamily(
            "kuproxy_announce_prefixes", "Prefixes that a speaker announces", labels=["speaker"]
        )
        trouble = GaugeMetricFamily(
            "kuproxy_announce_problem", "Whether a speaker reports a problem", labels=["speaker"]
        )
        for name, each in sorted(announcing.present(time.monotonic()).items()):
            announced.add_metric([name], each.announced)
            trouble.add_metric([name], int(bool(each.problem)))
        yield announced
        yield trouble

    def _workers(self, report: Report) -> Iterator[Metric]:
        activity = [worker_activity(state) for state in self._controller.plane.engine.states]
        for name, text in _ACTIVITY_TEXT.items():
            metric = CounterMetricFamily(f"kuproxy_worker_{name}", f"Per worker: {text}", labels=["worker"])
            for number, each in enumerate(activity):
                metric.add_metric([str(number)], each[name])
            yield metric
        idle = CounterMetricFamily(
            "kuproxy_worker_idle_seconds", "Per worker: time that it waited for packets", labels=["worker"]
        )
        for number, each in enumerate(activity):
            idle.add_metric([str(number)], each["idle_ns"] / 1e9)
        yield idle
        flows = GaugeMetricFamily(
            "kuproxy_worker_flows", "Flows in a worker's table", labels=["worker", "state"]
        )
        capacity = GaugeMetricFamily(
            "kuproxy_worker_flow_capacity", "Flows that fit into a worker's table", labels=["worker"]
        )
        for worker in report.workers:
            capacity.add_metric([str(worker.index)], worker.capacity)
            for state, count in worker.states.items():
                flows.add_metric([str(worker.index), state.label], count)
        yield flows
        yield capacity


def _cache(cache: CacheReport) -> Iterator[Metric]:
    yield GaugeMetricFamily(
        "kuproxy_cache_on", "Whether the kernel rewrites packets of established flows", value=int(cache.on)
    )
    yield GaugeMetricFamily("kuproxy_cache_flows", "Flows whose packets it rewrites", value=cache.flows)
    yield GaugeMetricFamily("kuproxy_cache_capacity", "Flows for which it has room", value=cache.capacity)
    for name, text, value in (
        ("hits", "Packets that the kernel has rewritten", cache.hits),
        ("misses", "Packets of VIPs and pods that came up to the workers", cache.came_up),
        ("closings", "Segments with SYN, FIN or RST of cached flows", cache.closed),
        ("lapses", "Packets of cached flows that came up because of a trace, or without control", cache.lapsed),
        ("failures", "Packets dropped because the kernel could not make room for a change", cache.failed),
        ("shortcuts", "Of the packets rewritten: that left the node past its routing and filters", cache.short),
        ("inserts", "Flows entered", cache.entered),
        ("turned_away", "Flows not entered for want of room, at each turn", cache.turned_away),
    ):
        yield CounterMetricFamily(f"kuproxy_cache_{name}", text, value=value)
    ended = CounterMetricFamily(
        "kuproxy_cache_removals",
        "Flows given back to the workers: closed, idle, changed (tables), lost (by the worker), evicted, failed",
        labels=["reason"],
    )
    for reason in GIVEN_BACK:
        ended.add_metric([reason], cache.given_back.get(reason, 0))
    yield ended
    ways = GaugeMetricFamily(
        "kuproxy_cache_directions", "Directions of flows in the kernel, by the way that packets take", labels=["way"]
    )
    for way, count in cache.ways.items():
        ways.add_metric([way], count)
    yield ways


def _vips(report: Report) -> Iterator[Metric]:
    labels = ["vip", "owner"]
    for counter, name in _VIP_NAMES.items():
        metric = CounterMetricFamily(
            f"kuproxy_vip_{name}", f"Per VIP: {VIP_COUNTER_TEXT[counter]}", labels=labels
        )
        for entry in report.vips:
            if not entry.removed:
                metric.add_metric([str(entry.vip.key), entry.vip.owner], entry.counters.get(counter, 0))
        yield metric
    flows = GaugeMetricFamily("kuproxy_vip_flows", "Per VIP: flows that are remembered", labels=labels)
    for entry in report.vips:
        if not entry.removed:
            flows.add_metric([str(entry.vip.key), entry.vip.owner], sum(pod.flows for pod in entry.pods))
    yield flows


def _pods(report: Report) -> Iterator[Metric]:
    labels = ["vip", "pod"]
    rows = [
        ([str(entry.vip.key), _pod_label(pod.address, pod.port or entry.vip.target_port)], pod)
        for entry in report.vips
        if not entry.removed
        for pod in entry.pods
        if not pod.draining
    ]
    for counter, name in _POD_NAMES.items():
        metric = CounterMetricFamily(
            f"kuproxy_pod_{name}", f"Per pod: {POD_COUNTER_TEXT[counter]}", labels=labels
        )
        for values, pod in rows:
            metric.add_metric(values, pod.counters.get(counter, 0))
        yield metric
    flows = GaugeMetricFamily("kuproxy_pod_flows", "Per pod: flows that are remembered", labels=labels)
    slots = GaugeMetricFamily("kuproxy_pod_slots", "Per pod: slots of the new-flow table", labels=labels)
    for values, pod in rows:
        flows.add_metric(values, pod.flows)
        slots.add_metric(values, pod.slots)
    yield flows
    yield slots


def _pod_label(address: object, port: int) -> str:
    return f"[{address}]:{port}" if ":" in str(address) else f"{address}:{port}"


def exposition(controller: Controller) -> tuple[bytes, str]:
    """The text, and its content type."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(controller))
    return generate_latest(registry), CONTENT_TYPE_PLAIN_1_0_0
