"""The resources: what each request does, in terms of the controller.

Every handler takes the controller and its decoded query and body, and returns a record.  A handler that
changes something raises KuError before anything has changed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from kuproxy import __version__
from kuproxy.codes import FlowState
from kuproxy.daemon.api import views
from kuproxy.daemon.api.announce import (
    AnnounceBeat,
    AnnounceOrder,
    AnnounceView,
    DrainRequest,
    ask_announce,
    get_announce,
    set_drain,
)
from kuproxy.daemon.api.explain import ExplainRequest, explain_packet
from kuproxy.daemon.api.graph import Graph, get_graph, get_graph_picture
from kuproxy.daemon.api.rates import (
    Overview,
    PodRatesOfVip,
    RatesQuery,
    VipRatesPage,
    get_overview,
    get_pod_rates,
    get_rates,
)
from kuproxy.daemon.api.ring import Ring, RingQuery, get_ring, get_ring_picture
from kuproxy.daemon.control import Answer, Controller
from kuproxy.daemon.schema import (
    Conf,
    Interface,
    PodSpec,
    Port,
    Record,
    State,
    Text,
    VipRef,
    VipSpec,
    key_of,
    pod_of,
    vip_of,
    without_key,
)
from kuproxy.daemon.upgrade import UpgradeError, ask_installed
from kuproxy.errors import ConfigError, Problem
from kuproxy.explain.report import Explanation
from kuproxy.model.config import MAX_TRACED, FlowFilter, Show, ShowKind
from kuproxy.model.report import Report
from kuproxy.model.vip import parse_address
from kuproxy.vppcli.actions import AddPods, DelPods, DelVip, ShowAction, VipSelector
from kuproxy.vppcli.apply import Desired
from kuproxy.vppcli.flows import flows_json
from kuproxy.vppcli.grammar import scan_script
from kuproxy.vppcli.show import render, to_json
from kuproxy.vppcli.trace import trace_json

__all__ = ["ROUTES", "Lines", "Nothing", "Route", "writes"]

Limit = Annotated[int, Meta(ge=1, le=10000)]


class Nothing(Record, frozen=True):
    """No parameters."""


class Page(Record, frozen=True):
    limit: Limit = 1000
    after: Annotated[int, Meta(ge=0, le=1 << 32)] = 0  # index of the last VIP that is known already


class PodsOf(VipRef, frozen=True, kw_only=True):
    """Pods to be added to one VIP."""

    pods: Annotated[list[PodSpec], Meta(min_length=1)]


class PodRef(VipRef, frozen=True, kw_only=True):
    """One pod of one VIP; pod_port 0: every pod with that address. `flush` takes away its flows."""

    address: Text
    pod_port: Port = 0
    flush: bool = False


class InterfaceList(Record, frozen=True):
    interfaces: list[Interface]


class FlowQuery(Record, frozen=True):
    """Filters; what is absent fits all. `vip` is a prefix, `pod` and `client` are addresses."""

    vip: Text | None = None
    pod: Text | None = None
    client: Text | None = None
    state: (
        Literal[
            "other", "tcp-half-open", "tcp-established", "tcp-closing", "udp", "sctp", "icmp"
        ]
        | None
    ) = None  # fmt: skip
    limit: Limit = 1000
    after: Annotated[str, Meta(pattern=r"^[0-9]{1,3}:[0-9]{1,9}$")] | None = None


class TraceRequest(Record, frozen=True):
    packets: Annotated[int, Meta(ge=1, le=MAX_TRACED)]


class UpgradeRequest(Record, frozen=True):
    """`check`: only say what would happen; `accept_loss`: go on although something will be forgotten."""

    check: bool = False
    accept_loss: bool = False


class Lines(Record, frozen=True):
    """Lines of the command language; all of them are carried out, or none."""

    lines: Annotated[str, Meta(max_length=1 << 20)]


@dataclass(frozen=True, slots=True)
class Route:
    """One method of one path."""

    method: str
    path: str
    summary: str
    handle: Callable[[Controller, Any, Any], msgspec.Struct]
    reply: type[msgspec.Struct]
    query: type[msgspec.Struct] = Nothing
    body: type[msgspec.Struct] | None = None
    write: bool = False


def writes(text: str) -> bool:
    """Whether lines of the language ask for more than `show`."""
    return any(not isinstance(action, ShowAction) for action in scan_script(text).actions)


def _changed(answer: Answer) -> views.Changed:
    return views.Changed.of(answer)


def _get_vips(controller: Controller, query: Page, _body: None) -> views.VipPage:
    entries = [entry for entry in controller.plane.report().vips if entry.index > query.after]
    page = entries[: query.limit]
    more = page[-1].index if len(entries) > len(page) else None
    return views.VipPage(vips=[views.vip_view(controller, entry) for entry in page], next=more)


def _put_vip(controller: Controller, _query: Nothing, body: VipSpec) -> views.Changed:
    vip = vip_of(body)
    return _changed(controller.edit(lambda desired: desired.put(vip)))


def _delete_vip(controller: Controller, query: VipRef, _body: None) -> views.Changed:
    key = key_of(query.prefix, query.protocol, query.port)

    def change(desired: Desired) -> None:
        if key in {vip.key for vip in desired.vips}:
            desired.apply(DelVip(VipSelector(key.prefix, key.port, key.protocol)))

    return _changed(controller.edit(change))


def _get_services(controller: Controller, _query: Nothing, _body: None) -> views.Services:
    return views.services_view(controller.plane.report())


def _get_pods(controller: Controller, _query: Nothing, _body: None) -> views.Pods:
    return views.Pods(
        pods=[
            views.PodOfVip(vip=str(entry.vip.key), pod=pod)
            for entry in controller.plane.report().vips
            for pod in views.pod_views(entry)
        ]
    )


def _add_pods(controller: Controller, _query: Nothing, body: PodsOf) -> views.Changed:
    key = key_of(body.prefix, body.protocol, body.port)
    action = AddPods(VipSelector(key.prefix, key.port, key.protocol), tuple(map(pod_of, body.pods)))
    return _changed(controller.edit(lambda desired: desired.apply(action)))


def _delete_pod(controller: Controller, query: PodRef, _body: None) -> views.Changed:
    key = key_of(query.prefix, query.protocol, query.port)
    pod = pod_of(PodSpec(address=query.address, port=query.pod_port))
    action = DelPods(VipSelector(key.prefix, key.port, key.protocol), (pod,), query.flush)

    def change(desired: Desired) -> None:
        held = next((vip.pods for vip in desired.vips if vip.key == key), None)
        if held is None or any(pod.address == each.address for each in held):
            desired.apply(action)

    return _changed(controller.edit(change))


def _get_settings(controller: Controller, _query: Nothing, _body: None) -> views.SettingsView:
    return views.SettingsView(conf=without_key(controller.commands.conf), effective=views.effective_conf(controller))


def _put_settings(controller: Controller, _query: Nothing, body: Conf) -> views.SettingsView:
    controller.set_conf(body)
    return _get_settings(controller, Nothing(), None)


def _get_interfaces(controller: Controller, _query: Nothing, _body: None) -> views.Interfaces:
    return views.Interfaces(
        own=[Interface.of(mark) for mark in controller.commands.desired.interfaces],
        effective=[Interface.of(mark) for mark in controller.marks],
    )


def _put_interfaces(controller: Controller, _query: Nothing, body: InterfaceList) -> views.Interfaces:
    names = [each.name for each in body.interfaces]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(Problem(f"{name} is given twice", field="interfaces"))
    controller.edit(lambda desired: desired.set_interfaces(each.mark() for each in body.interfaces))
    return _get_interfaces(controller, Nothing(), None)


def _get_state(controller: Controller, _query: Nothing, _body: None) -> State:
    state = controller.commands.state()
    return msgspec.structs.replace(state, conf=without_key(state.conf))


def _put_state(controller: Controller, _query: Nothing, body: State) -> views.Changed:
    return _changed(controller.load_state(body))


def _get_counters(controller: Controller, _query: Nothing, _body: None) -> views.Counters:
    return views.counters_view(controller, controller.plane.report())


def _address(field: str, text: str) -> Any:
    try:
        return parse_address(text)
    except ValueError as error:
        raise ConfigError(Problem(str(error), field=field)) from None


def _get_flows(controller: Controller, query: FlowQuery, _body: None) -> views.FlowPage:
    worker, slot = map(int, query.after.split(":")) if query.after else (0, -1)
    wanted = FlowFilter(
        vip=None if query.vip is None else key_of(query.vip).prefix,
        pod=None if query.pod is None else _address("pod", query.pod),
        client=None if query.client is None else _address("client", query.client),
        state=None if query.state is None else FlowState[query.state.upper().replace("-", "_")],
        limit=query.limit,
        after=(worker, slot) if query.after else None,
    )
    return views.flow_page(controller.plane.flows(wanted))


def _flush(controller: Controller, _query: Nothing, _body: None) -> views.Flushed:
    return views.Flushed(flows=controller.forwarder.flush())


def _get_trace(controller: Controller, _query: Nothing, _body: None) -> views.Trace:
    return views.Trace(packets=trace_json(controller.plane.report().trace))


def _add_trace(controller: Controller, _query: Nothing, body: TraceRequest) -> TraceRequest:
    controller.forwarder.trace(body.packets)
    return body


def _get_health(controller: Controller, _query: Nothing, _body: None) -> views.Health:
    return views.health_view(controller, __version__)


_SHOWN = {
    ShowKind.GENERAL: ("driver", "cache", "replies", "settings", "interfaces", "workers"),
    ShowKind.VIPS: ("vips",),
    ShowKind.NODES: ("nodes",),
    ShowKind.TRACE: ("trace",),
    ShowKind.FLOWS: ("flows", "next"),
}


def _show_json(report: Report, show: Show) -> dict[str, Any]:
    content = flows_json(report.flows) if show.kind is ShowKind.FLOWS else to_json(report)
    return {name: content[name] for name in _SHOWN[show.kind]}


def _run_lines(controller: Controller, _query: Nothing, body: Lines) -> views.Output:
    answer = controller.run(body.lines)
    report = controller.plane.report() if answer.shows else None
    told = [(controller.plane.told(report, show), show) for show in answer.shows if report is not None]
    text = "".join(render(each, show) for each, show in told)
    if answer.flushed is not None:
        text = f"{answer.flushed} flows forgotten\n{text}"
    shows = [_show_json(each, show) for each, show in told]
    return views.Output(changed=_changed(answer), output=text, shows=shows)


def _upgrade(controller: Controller, _query: Nothing, body: UpgradeRequest) -> views.Upgrade:
    installed = ask_installed(len(controller.plane.engine.states))
    if installed.losses and not (body.check or body.accept_loss):
        raise UpgradeError(f"version {installed.version} would forget: {'; '.join(installed.losses)}")
    if not body.check:
        controller.replace()
    return views.Upgrade(
        running=__version__,
        version=installed.version,
        same_layout=installed.same_layout,
        losses=installed.losses,
    )


def _reload(controller: Controller, _query: Nothing, _body: None) -> views.Changed:
    return _changed(controller.reload())


ROUTES: tuple[Route, ...] = (
    Route("GET", "/v1/vips", "VIPs with pods and counters", _get_vips, views.VipPage, Page),
    Route(
        "PUT", "/v1/vips", "create a VIP, or replace it with its pods", _put_vip, views.Changed,
        body=VipSpec, write=True,
    ),
    Route(
        "DELETE", "/v1/vips", "delete a VIP with its pods", _delete_vip, views.Changed, VipRef, write=True
    ),
    Route("GET", "/v1/services", "VIPs by owner", _get_services, views.Services),
    Route("GET", "/v1/pods", "every pod of every VIP", _get_pods, views.Pods),
    Route("PUT", "/v1/pods", "add pods to a VIP", _add_pods, views.Changed, body=PodsOf, write=True),
    Route(
        "DELETE", "/v1/pods", "remove a pod from a VIP", _delete_pod, views.Changed, PodRef, write=True
    ),
    Route("GET", "/v1/settings", "what `ku conf` sets", _get_settings, views.SettingsView),
    Route(
        "PUT", "/v1/settings", "set it, all of it", _put_settings, views.SettingsView, body=Conf, write=True
    ),
    Route("GET", "/v1/interfaces", "marked interfaces", _get_interfaces, views.Interfaces),
    Route(
        "PUT", "/v1/interfaces", "mark these and no others", _put_interfaces, views.Interfaces,
        body=InterfaceList, write=True,
    ),
    Route("GET", "/v1/state", "everything that commands have set", _get_state, State),
    Route(
        "PUT", "/v1/state", "replace everything that commands have set", _put_state, views.Changed,
        body=State, write=True,
    ),
    Route("GET", "/v1/counters", "what was counted, by node and reason", _get_counters, views.Counters),
    Route("GET", "/v1/flows", "remembered flows", _get_flows, views.FlowPage, FlowQuery),
    Route("GET", "/v1/overview", "rates, drops and workers at a glance", get_overview, Overview),
    Route("GET", "/v1/rates", "VIPs by what happens now", get_rates, VipRatesPage, RatesQuery),
    Route("GET", "/v1/rates/pods", "the pods of a VIP, with rates", get_pod_rates, PodRatesOfVip, VipRef),
    Route("GET", "/v1/ring", "who owns the slots of a VIP, now and before", get_ring, Ring, RingQuery),
    Route("GET", "/v1/ring.svg", "the same as a picture", get_ring_picture, views.Picture, VipRef),
    Route("GET", "/v1/graph", "the way of packets, with counters", get_graph, Graph),
    Route("GET", "/v1/graph.svg", "the same as a picture", get_graph_picture, views.Picture),
    Route("POST", "/v1/flows/flush", "forget every flow", _flush, views.Flushed, write=True),
    Route("GET", "/v1/trace", "the traced packets", _get_trace, views.Trace),
    Route(
        "POST", "/v1/trace", "trace the next packets", _add_trace, TraceRequest, body=TraceRequest, write=True
    ),
    Route(
        "POST", "/v1/explain", "what becomes of a packet, and why", explain_packet, Explanation,
        body=ExplainRequest,
    ),
    Route("GET", "/v1/health", "whether it forwards what was asked for", _get_health, views.Health),
    Route("POST", "/v1/ku", "carry out command lines", _run_lines, views.Output, body=Lines),
    Route(
        "POST", "/v1/upgrade", "have the installed version take over", _upgrade, views.Upgrade,
        body=UpgradeRequest, write=True,
    ),
    Route("GET", "/v1/announce", "what the network is told, and by whom", get_announce, AnnounceView),
    Route(
        "POST", "/v1/announce", "for speakers: what to announce", ask_announce, AnnounceOrder,
        body=AnnounceBeat, write=True,
    ),
    Route(
        "PUT", "/v1/announce/drain", "announce nothing, or again what is served", set_drain, AnnounceView,
        body=DrainRequest, write=True,
    ),
    Route("POST", "/v1/reload", "read the files again", _reload, views.Changed, write=True),
)  # fmt: skip
