"""What the API server sends, decoded into typed structs that hold only what a proxy needs.

Most of an object's bytes are of no use here (managedFields, the last applied configuration): a struct names the
fields that are wanted, and msgspec steps over the rest without making anything of it.  Labels and annotations are
structs for the same reason.  What a field may be follows the API's own JSON: absent and null mean the same, and
Go's empty slices arrive as null.

The resourceVersion is taken out of the object and kept beside it: two objects are equal when they mean the same, and
the heartbeat of a node changes nothing.

Source: k8s.io/api core/v1, discovery/v1 and networking/v1 types; apimachinery meta/v1 (ListMeta, WatchEvent, Status).
"""

from __future__ import annotations

import sys
from typing import Any, Generic, TypeVar

import msgspec
from msgspec import Raw, Struct, field

__all__ = [
    "Endpoint",
    "EndpointSlice",
    "Item",
    "ItemDecoder",
    "Key",
    "Node",
    "Page",
    "Service",
    "ServiceCIDR",
    "Status",
    "WatchEvent",
    "decode_event",
    "decode_status",
    "document",
    "version_of",
]

Key = tuple[str, str]
"""Namespace (empty for what has none) and name."""


# No cycle can arise among these, so that the collector need not visit a hundred thousand endpoints.
class _Part(Struct, rename="camel", omit_defaults=True, gc=False):
    """Any part of an object; unknown fields are skipped."""


class Item(_Part):
    """What all objects have.  `resource_version` is empty once `take_version` has been called."""

    @property
    def key(self) -> Key:
        meta = self.meta
        return (meta.namespace, meta.name)

    @property
    def meta(self) -> _Meta:
        return self.metadata  # type: ignore[attr-defined]  # each kind has its own labels


# Labels and annotations that are absent are like those of which none is looked at: an annotation that nobody reads
# must not make an object differ.
class _Meta(_Part):
    name: str = ""
    namespace: str = ""
    resource_version: str = ""
    deletion_timestamp: str | None = None


def version_of(text: str) -> int:
    """A resourceVersion as the number it is.  Raises ValueError for anything else, and for a number of 4301 digits.

    That they may be compared as decimal numbers is promised by the API (KEP-5504), and was always so.
    """
    if not (text.isascii() and text.isdigit() and len(text) <= 20):
        raise ValueError(f"resourceVersion {text[:40]!r} is not a decimal number")
    return int(text)


# ------------------------------------------------------------------------------------------------- Service


class ServiceLabels(_Part):
    proxy_name: str | None = field(default=None, name="service.kubernetes.io/service-proxy-name")
    headless: str | None = field(default=None, name="service.kubernetes.io/headless")


class ServiceAnnotations(_Part):
    topology_mode: str | None = field(default=None, name="service.kubernetes.io/topology-mode")
    topology_aware_hints: str | None = field(default=None, name="service.kubernetes.io/topology-aware-hints")


class ServiceMeta(_Meta):
    creation_timestamp: str | None = None
    labels: ServiceLabels | None = field(default_factory=ServiceLabels)
    annotations: ServiceAnnotations | None = field(default_factory=ServiceAnnotations)


class ServicePort(_Part):
    port: int
    name: str | None = None
    protocol: str | None = None
    target_port: int | str | None = None
    node_port: int | None = None
    app_protocol: str | None = None


class ClientIPConfig(_Part):
    timeout_seconds: int | None = None


class SessionAffinityConfig(_Part):
    client_ip: ClientIPConfig | None = field(default=None, name="clientIP")


class ServiceSpec(_Part):
    type: str | None = None
    cluster_ip: str | None = field(default=None, name="clusterIP")
    cluster_ips: list[str] | None = field(default=None, name="clusterIPs")
    ip_families: list[str] | None = None
    ports: list[ServicePort] | None = None
    external_ips: list[str] | None = field(default=None, name="externalIPs")
    external_name: str | None = None
    load_balancer_source_ranges: list[str] | None = None
    load_balancer_class: str | None = None
    allocate_load_balancer_node_ports: bool | None = None
    internal_traffic_policy: str | None = None
    external_traffic_policy: str | None = None
    health_check_node_port: int | None = None
    session_affinity: str | None = None
    session_affinity_config: SessionAffinityConfig | None = None
    publish_not_ready_addresses: bool | None = None
    traffic_distribution: str | None = None


class Ingress(_Part):
    ip: str | None = None
    hostname: str | None = None
    ip_mode: str | None = None


class LoadBalancer(_Part):
    ingress: list[Ingress] | None = None


class ServiceStatus(_Part):
    load_balancer: LoadBalancer | None = None


class Service(Item, tag_field="kind", tag="Service"):
    """v1 Service."""

    metadata: ServiceMeta = field(default_factory=ServiceMeta)
    spec: ServiceSpec | None = None
    status: ServiceStatus | None = None


# ------------------------------------------------------------------------------------------- EndpointSlice


class SliceLabels(_Part):
    service_name: str | None = field(default=None, name="kubernetes.io/service-name")


class SliceAnnotations(_Part):
    last_change_trigger_time: str | None = field(
        default=None, name="endpoints.kubernetes.io/last-change-trigger-time"
    )


class SliceMeta(_Meta):
    labels: SliceLabels | None = field(default_factory=SliceLabels)
    annotations: SliceAnnotations | None = field(default_factory=SliceAnnotations)


class Conditions(_Part):
    ready: bool | None = None
    serving: bool | None = None
    terminating: bool | None = None


class Named(_Part):
    name: str = ""


class Hints(_Part):
    for_zones: list[Named] | None = None
    for_nodes: list[Named] | None = None


class Endpoint(_Part):
    addresses: tuple[str, ...] | None = None
    conditions: Conditions | None = None
    node_name: str | None = None
    zone: str | None = None
    hostname: str | None = None
    hints: Hints | None = None


_CONDITIONS = {
    (ready, serving, terminating): Conditions(ready, serving, terminating)
    for ready in (None, False, True)
    for serving in (None, False, True)
    for terminating in (None, False, True)
}


def share_parts(endpoints: list[Endpoint] | None) -> None:
    """Let equal parts of endpoints be the same object: a hundred thousand of them name few nodes, zones and conditions.

    None of them is changed later on.
    """
    for each in endpoints or ():
        if each.node_name is not None:
            each.node_name = sys.intern(each.node_name)
        if each.zone is not None:
            each.zone = sys.intern(each.zone)
        state = each.conditions
        if state is not None:
            each.conditions = _CONDITIONS[state.ready, state.serving, state.terminating]


class EndpointPort(_Part):
    name: str | None = None
    protocol: str | None = None
    port: int | None = None


class EndpointSlice(Item, tag_field="kind", tag="EndpointSlice"):
    """discovery.k8s.io/v1 EndpointSlice."""

    metadata: SliceMeta = field(default_factory=SliceMeta)
    address_type: str | None = None
    endpoints: list[Endpoint] | None = None
    ports: list[EndpointPort] | None = None

    def __post_init__(self) -> None:
        share_parts(self.endpoints)

    @property
    def service(self) -> Key | None:
        """The service it belongs to, by label; None if it names none."""
        labels = self.metadata.labels
        name = labels.service_name if labels is not None else None
        return (self.metadata.namespace, name) if name else None


# ------------------------------------------------------------------------------------- Node and ServiceCIDR


class NodeLabels(_Part):
    zone: str | None = field(default=None, name="topology.kubernetes.io/zone")
    region: str | None = field(default=None, name="topology.kubernetes.io/region")
    hostname: str | None = field(default=None, name="kubernetes.io/hostname")
    excluded: str | None = field(default=None, name="node.kubernetes.io/exclude-from-external-load-balancers")


class NodeMeta(_Meta):
    uid: str = ""  # events about the node name it
    labels: NodeLabels | None = field(default_factory=NodeLabels)


class Taint(_Part):
    key: str = ""
    effect: str | None = None


class NodeSpec(_Part):
    pod_cidr: str | None = field(default=None, name="podCIDR")
    pod_cidrs: list[str] | None = field(default=None, name="podCIDRs")
    provider_id: str | None = field(default=None, name="providerID")
    taints: list[Taint] | None = None


class NodeAddress(_Part):
    type: str = ""
    address: str = ""


class NodeStatus(_Part):
    addresses: list[NodeAddress] | None = None


class Node(Item, tag_field="kind", tag="Node"):
    """v1 Node."""

    metadata: NodeMeta = field(default_factory=NodeMeta)
    spec: NodeSpec | None = None
    status: NodeStatus | None = None


class ServiceCIDRSpec(_Part):
    cidrs: list[str] | None = None


class Condition(_Part):
    type: str = ""
    status: str | None = None


class ServiceCIDRStatus(_Part):
    conditions: list[Condition] | None = None


class ServiceCIDR(Item, tag_field="kind", tag="ServiceCIDR"):
    """networking.k8s.io/v1 ServiceCIDR."""

    metadata: _Meta = field(default_factory=_Meta)
    spec: ServiceCIDRSpec | None = None
    status: ServiceCIDRStatus | None = None


def document(item: Item) -> dict[str, Any]:
    """The object as plain JSON values with its kind: what `kube.convert` takes."""
    plain: dict[str, Any] = msgspec.to_builtins(item)
    return plain


# ------------------------------------------------------------------------------- lists, events and refusals

T = TypeVar("T", bound=Item)
D = TypeVar("D")


class ListMeta(_Part):
    resource_version: str = ""
    continue_: str = field(default="", name="continue")


class Page(Struct, Generic[T]):
    """A list, or one page of it."""

    metadata: ListMeta
    items: list[T] | None = None


class _RawPage(Struct):
    metadata: ListMeta
    items: list[Raw] | None = None


class _Anonymous(_Part):
    """So much of an object that it can be named, whatever is wrong with the rest."""

    metadata: _Meta = field(default_factory=_Meta)


class WatchEvent(Struct):
    """One line of a watch; what the object is depends on the type."""

    type: str
    object: Raw


class Status(_Part):
    """Why a request was refused."""

    code: int = 0
    reason: str = ""
    message: str = ""


_EVENT = msgspec.json.Decoder(WatchEvent)
_STATUS = msgspec.json.Decoder(Status)
_RAW_PAGE = msgspec.json.Decoder(_RawPage)
_ANONYMOUS = msgspec.json.Decoder(_Anonymous)


def _read(decoder: msgspec.json.Decoder[D], data: bytes | bytearray | Raw) -> D:
    """Raises msgspec.DecodeError for whatever is not understood, a thousand brackets among it."""
    try:
        return decoder.decode(data)
    except RecursionError:
        raise msgspec.DecodeError("nested too deeply") from None


def decode_event(line: bytes | bytearray) -> WatchEvent:
    """Raises msgspec.DecodeError for what is no watch event."""
    return _read(_EVENT, line)


def decode_status(body: bytes | bytearray | Raw) -> Status:
    """A refusal; one that says nothing (plain text, nothing at all) has code 0 and the text as its message."""
    try:
        return _read(_STATUS, body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return Status(message=bytes(body)[:200].decode("utf-8", "replace").strip())


class ItemDecoder(Generic[T]):
    """Decodes one kind of object, alone and in lists; one object that is not as the API has it spoils no other."""

    def __init__(self, kind: type[T]) -> None:
        self._item: msgspec.json.Decoder[T] = msgspec.json.Decoder(kind)
        self._page: msgspec.json.Decoder[Page[T]] = msgspec.json.Decoder(Page[kind])  # type: ignore[valid-type]

    def item(self, raw: bytes | Raw) -> T:
        """Raises msgspec.ValidationError for another shape, msgspec.DecodeError for no JSON."""
        return _read(self._item, raw)

    def page(self, body: bytes | bytearray) -> tuple[ListMeta, list[T], dict[Key, str]]:
        """Its metadata, the objects, and for each that was left out the reason.  Raises msgspec.DecodeError."""
        try:
            page = _read(self._page, body)
            return page.metadata, page.items or [], {}
        except msgspec.ValidationError:
            raw_page = _read(_RAW_PAGE, body)
        items: list[T] = []
        faults: dict[Key, str] = {}
        for raw in raw_page.items or ():
            try:
                items.append(_read(self._item, raw))
            except msgspec.ValidationError as error:
                faults[anonymous(raw)[0]] = str(error)
        return raw_page.metadata, items, faults


def anonymous(raw: bytes | Raw) -> tuple[Key, str]:
    """Key and resourceVersion of an object that is otherwise not understood.  Raises msgspec.DecodeError."""
    meta = _read(_ANONYMOUS, raw).metadata
    return (meta.namespace, meta.name), meta.resource_version
