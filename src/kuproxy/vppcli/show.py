"""The text of `show`, in VPP's manner, and the same as JSON.

VPP's lines are kept where VPP has them, so that scripts which read them go on working: protocol (VPP has none) and
pod ports appear only when they are set.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from kuproxy.codes import (
    POD_COUNTER_TEXT,
    REASON_TEXT,
    VIP_COUNTER_TEXT,
    Encap,
    FlowState,
    PodCounter,
    Protocol,
    VipCounter,
)
from kuproxy.model.config import Settings, Show, ShowKind
from kuproxy.model.report import CacheReport, NodeCount, PodReport, Report, VipReport
from kuproxy.model.vip import DEFAULT_WEIGHT, Vip, address_text
from kuproxy.vppcli.flows import show_flows
from kuproxy.vppcli.trace import show_trace, trace_json

__all__ = ["render", "show_general", "show_nodes", "show_vips", "show_vips_verbose", "to_json"]


def render(report: Report, show: Show) -> str:
    """The text that one `show` command asks for, ending in a newline unless there is nothing to tell."""
    if show.kind is ShowKind.NODES:
        return show_nodes(report)
    if show.kind is ShowKind.TRACE:
        return show_trace(report.trace)
    if show.kind is ShowKind.FLOWS:
        return show_flows(report.flows)
    if show.kind is ShowKind.VIPS:
        return show_vips_verbose(report) if show.verbose else show_vips(report)
    return show_general(report)


def show_general(report: Report) -> str:
    """`show ku`: totals, then the established-flow table of each worker."""
    lines = [
        "kube-proxy",
        f" #vips: {sum(not vip.removed for vip in report.vips)}",
        f" #pods: {sum(len(_live_pods(vip)) for vip in report.vips)}",
        f" buckets: {report.settings.buckets}",
    ]
    if report.settings.flow_hash.keyed:
        lines.append(f" flow hash: {_flow_hash(report.settings)}")
    if report.settings.second_chance_s:
        lines.append(f" second chance: {report.settings.second_chance_s:g} s")
    if report.driver:
        lines.append(f" driver: {report.driver}")
    if report.cache is not None:
        lines.append(f" flow cache: {_cache(report.cache)}")
        lines += _ways(report.cache)
    if report.replies is not None:
        refused = report.replies.refused
        lines.append(f" replies of pods: {_PLACES[report.replies.path]}; {refused} packets in a pod's name refused")
    for version, source in ((4, report.settings.ip4_src_address), (6, report.settings.ip6_src_address)):
        if source is not None:
            lines.append(f" ip{version}-src-address: {source}")
    for mark in report.interfaces:
        nats = [nat for nat, marked in (("nat4", mark.nat4_in), ("nat6", mark.nat6_in)) if marked]
        lines.append(f" interface {mark.name}: {' '.join(nats)} in")
    for worker in report.workers:
        lines += [
            f"core {worker.index}",
            f"  timeout: {_timeouts(report.settings)}",
            f"  usage: {worker.flows} / {worker.capacity}",
        ]
    return _text(lines)


# Where they are taken.
_PLACES = {"strict": "from where the pod is", "any": "from anywhere", "marked": "from marked interfaces"}


def _flow_hash(settings: Settings) -> str:
    """In `show ku`."""
    return "keyed, with a given key" if settings.flow_hash.key else "keyed"


def _cache(cache: CacheReport) -> str:
    """In `show ku`."""
    return f"on, {cache.flows} of {cache.capacity} flows" if cache.on else f"off ({cache.why})"


def _ways(cache: CacheReport) -> Iterable[str]:
    """Where shortcuts may be taken: which ways the flows' directions have, and why some have no shorter one."""
    if cache.on and cache.ways:
        counts = ", ".join(f"{way} {count}" for way, count in cache.ways.items())
        yield f"  ways: {counts}; {cache.short} of {cache.hits} packets by shortcuts"
        for why, count in sorted(cache.because.items()):
            yield f"  route because of {why}: {count}"


def _timeouts(settings: Settings) -> str:
    """`40s`, or the states and theirs."""
    values = settings.timeouts
    if len(set(values.values())) == 1:
        return f"{values[FlowState.OTHER]:g}s"
    return " ".join(f"{state.label} {seconds:g}s" for state, seconds in values.items())


def _ports(vip: Vip) -> str:
    text = f"port:{vip.key.port} target_port:{vip.target_port} node_port:{vip.node_port}"
    return f"protocol:{vip.key.protocol.name.lower()} {text}" if vip.key.protocol != Protocol.ANY else text


def _live_pods(report: VipReport) -> list[PodReport]:
    return [pod for pod in report.pods if not pod.draining]


def show_vips(report: Report) -> str:
    """`show ku vips`: one line for each VIP."""
    return _text(
        f"{entry.vip.label} {entry.vip.key.prefix} {_ports(entry.vip)} "
        f"new_size:{entry.vip.new_len} #pod:{len(_live_pods(entry))}{' removed' if entry.removed else ''}"
        for entry in report.vips
    )


def show_vips_verbose(report: Report) -> str:
    """`show ku vips verbose`: counters, and for each pod its slots of the new-flow table and its flows."""
    return _text(line for entry in report.vips for line in _vip_lines(entry))


def _vip_lines(entry: VipReport) -> Iterable[str]:
    vip = entry.vip
    yield f"{vip.label} [{entry.index}] {vip.key.prefix}{' removed' if entry.removed else ''}"
    yield f"  new_size:{vip.new_len}"
    yield f"  {_ports(vip)}"
    if vip.encap is Encap.L3DSR:
        yield f"  dscp:{vip.dscp}"
    if vip.encap is Encap.GUE:
        yield f"  gue_port:{vip.gue_port}"
    if vip.owner != "ku":
        yield f"  owner:{vip.owner}"
    if vip.masquerade or vip.masquerade_from:
        yield f"  masquerade:{','.join(vip.origins_masqueraded) or 'everybody'}"
    yield "  counters:"
    for counter in VipCounter:
        if counter == VipCounter.EVICTED and not entry.counters.get(counter):
            continue  # a flood is news
        yield f"    {VIP_COUNTER_TEXT[counter]}: {entry.counters.get(counter, 0)}"
    yield f"  #pod:{len(_live_pods(entry))}"
    if vip.outside_pods == () and vip.pods:
        yield f"    nobody for clients from outside: they are {'refused' if vip.reject else 'dropped'}"
    for pod in entry.pods:
        state = "removed" if pod.draining else "used"
        weight = "" if pod.weight == DEFAULT_WEIGHT else f"  weight {pod.weight}"
        yield f"    {address_text(pod.address, pod.port)} {_buckets(pod)}   {pod.flows} flows  {state}{weight}"
        counted = [
            f"{POD_COUNTER_TEXT[each]}: {pod.counters[each]}" for each in PodCounter if pod.counters.get(each)
        ]
        if counted:
            yield f"      {', '.join(counted)}"


def _buckets(pod: PodReport) -> str:
    """Slots of the new-flow table; where there are two, of that for pods and the node, and of that for the others."""
    if pod.outside_slots is None:
        return f"{pod.slots} buckets"
    return f"{pod.slots} buckets inside, {pod.outside_slots} outside"


def show_nodes(report: Report) -> str:
    """`show node counters`: what happened, where, why; what never happened is left out."""
    counted = [entry for entry in report.nodes if entry.count]
    if not counted:
        return ""
    lines = [f"{'Count':>16}  {'Node':<20}  Reason"]
    lines += [
        f"{entry.count:>16}  {entry.node.label:<20}  {REASON_TEXT[entry.reason]}"
        for entry in _ordered(counted)
    ]
    return _text(lines)


def _ordered(nodes: Iterable[NodeCount]) -> list[NodeCount]:
    return sorted(nodes, key=lambda entry: (entry.node, entry.reason))


def _text(lines: Iterable[str]) -> str:
    return "".join(f"{line}\n" for line in lines)


def to_json(report: Report) -> dict[str, Any]:
    """Everything in the report, as JSON takes it; keys are the words of the command language."""
    return {
        "driver": report.driver,
        "cache": None if report.cache is None else asdict(report.cache),
        "replies": None if report.replies is None else asdict(report.replies),
        "settings": {
            "buckets": report.settings.buckets,
            "timeout": report.settings.timeout_s,
            "timeouts": {state.label: seconds for state, seconds in report.settings.timeouts.items()},
            "masquerade": [str(address) for address in report.settings.masquerade],
            "pod_ranges": [str(prefix) for prefix in report.settings.pod_ranges],
            "flow_hash": str(report.settings.flow_hash),
            "reply_path": str(report.settings.reply_path),
            "second_chance": report.settings.second_chance_s,
        }
        | {
            f"ip{version}_src_address": str(address)
            for version, address in (
                (4, report.settings.ip4_src_address),
                (6, report.settings.ip6_src_address),
            )
            if address is not None
        },
        "interfaces": [
            {"name": mark.name, "nat4_in": mark.nat4_in, "nat6_in": mark.nat6_in}
            for mark in report.interfaces
        ],
        "workers": [
            {
                "index": worker.index,
                "flows": worker.flows,
                "capacity": worker.capacity,
                "states": {state.label: count for state, count in worker.states.items()},
            }
            for worker in report.workers
        ],
        "vips": [_vip_json(entry) for entry in report.vips],
        "nodes": [
            {
                "node": entry.node.label,
                "reason": entry.reason.name,
                "text": REASON_TEXT[entry.reason],
                "count": entry.count,
            }
            for entry in _ordered(report.nodes)
        ],
        "trace": trace_json(report.trace),
    }


def _vip_json(entry: VipReport) -> dict[str, Any]:
    vip = entry.vip
    return {
        "index": entry.index,
        "prefix": str(vip.key.prefix),
        "protocol": vip.key.protocol.name.lower(),
        "port": vip.key.port,
        "target_port": vip.target_port,
        "node_port": vip.node_port,
        "type": vip.label,
        "encap": vip.encap.name.lower(),
        "dscp": vip.dscp,
        "gue_port": vip.gue_port,
        "new_len": vip.new_len,
        "reject": vip.reject,
        "masquerade": vip.masquerade,
        "masquerade_from": list(vip.origins_masqueraded),
        "reset": vip.reset,
        "affinity": vip.affinity_s,
        "source_ranges": [str(prefix) for prefix in vip.source_ranges],
        "hash": vip.hash_mode.name.lower(),
        "sessions": vip.session_cap,
        "owner": vip.owner,
        "removed": entry.removed,
        "counters": {counter.name.lower(): entry.counters.get(counter, 0) for counter in VipCounter},
        "pods": [
            {
                "address": str(pod.address),
                "port": pod.port,
                "buckets": pod.slots,
                "outside_buckets": pod.outside_slots,
                "flows": pod.flows,
                "removed": pod.draining,
                "counters": {each.name.lower(): pod.counters.get(each, 0) for each in PodCounter},
                "weight": pod.weight,
            }
            for pod in entry.pods
        ],
    }
