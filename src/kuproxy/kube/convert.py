"""Kubernetes' objects, as JSON has them, into the model.

The same functions read manifests and what the API server sends.  Nothing raises: faults are collected as findings,
and an object with a fault is left out.  Fields that decide nothing for a proxy are not looked at, so that objects
of newer API versions still pass.

Sources: k8s.io/api core/v1 and discovery/v1 types; kube-proxy's pkg/proxy/endpointslicecache.go for the meaning of
absent conditions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kuproxy.codes import Family, Protocol
from kuproxy.kube.node import convert_node, convert_service_cidr
from kuproxy.kube.reader import Finding, Path, Reader
from kuproxy.model.node import NodeInfo
from kuproxy.model.service import (
    DEFAULT_AFFINITY_TIMEOUT_S,
    Endpoint,
    EndpointPort,
    EndpointSlice,
    IpMode,
    LoadBalancerIngress,
    Service,
    ServicePort,
    ServiceType,
    SessionAffinity,
    TrafficPolicy,
)
from kuproxy.model.vip import MAX_PORT, Address, Prefix, parse_address

__all__ = ["Converted", "convert_document", "convert_endpoint_slice", "convert_service"]

SERVICE_NAME_LABEL = "kubernetes.io/service-name"
PROXY_NAME_LABEL = "service.kubernetes.io/service-proxy-name"
TOPOLOGY_MODE_ANNOTATION = "service.kubernetes.io/topology-mode"
MAX_LIST_DEPTH = 8  # of the path: four lists in each other
MAX_AFFINITY_TIMEOUT_S = 86400  # k8s.io/kubernetes/pkg/apis/core/validation: one day

_NO_CONDITIONS: dict[str, Any] = {}
_FLAGS = {bool, type(None)}
_WORDS = {str, type(None)}
_PROTOCOLS = {"TCP": Protocol.TCP, "UDP": Protocol.UDP, "SCTP": Protocol.SCTP}


@dataclass(slots=True)
class Converted:
    """What was understood, and at which path of its document it stands."""

    services: list[tuple[Service, Path]] = field(default_factory=list)
    slices: list[tuple[EndpointSlice, Path]] = field(default_factory=list)
    nodes: list[tuple[NodeInfo, Path]] = field(default_factory=list)
    service_cidrs: list[Prefix] = field(default_factory=list)
    problems: list[Finding] = field(default_factory=list)
    notes: list[Finding] = field(default_factory=list)  # skipped, and why


def convert_document(document: object, into: Converted | None = None, path: Path = ()) -> Converted:
    """Convert one document: an object, or a list of them (`List`, `ServiceList`, `EndpointSliceList` ...)."""
    into = into or Converted()
    _convert(document, into, path, kind_of_items="")
    return into


def _convert(document: object, into: Converted, path: Path, kind_of_items: str) -> None:
    if document is None:
        return  # an empty YAML document, as behind a last `---`
    if not isinstance(document, Mapping):
        into.problems.append(
            Finding("", path, "this is not a Kubernetes object", "an object has a kind", depth=len(path))
        )
        return
    # The API server leaves the kind out in the items of a list.
    kind = document.get("kind", kind_of_items)
    if not isinstance(kind, str) or not kind:
        into.problems.append(
            Finding("", path, "an object without kind", "say kind: Service or EndpointSlice", depth=len(path))
        )
        return
    if kind.endswith("List") and "items" in document:
        items = document["items"]
        if not isinstance(items, list | None):
            into.problems.append(Finding(kind, (*path, "items"), "this is not a list", depth=len(path)))
            return
        if len(path) > MAX_LIST_DEPTH:  # a YAML alias can make a list its own item
            into.problems.append(Finding(kind, (*path, "items"), "lists in lists in lists", depth=len(path)))
            return
        for index, item in enumerate(items or ()):
            _convert(item, into, (*path, "items", index), kind.removesuffix("List"))
        return
    # Knative has a Service of its own; items of the API server's lists have no apiVersion.
    group, _, _version = str(document.get("apiVersion") or "").rpartition("/")
    if kind == "Service" and not group:
        service = convert_service(document, into.problems, path)
        if service is not None:
            into.services.append((service, path))
    elif kind == "EndpointSlice" and group in ("", "discovery.k8s.io"):
        endpoint_slice = convert_endpoint_slice(document, into.problems, into.notes, path)
        if endpoint_slice is not None:
            into.slices.append((endpoint_slice, path))
    elif kind == "Node" and not group:
        node = convert_node(document, into.problems, path)
        if node is not None:
            into.nodes.append((node, path))
    elif kind == "ServiceCIDR" and group in ("", "networking.k8s.io"):
        into.service_cidrs += convert_service_cidr(document, into.problems, path) or ()
    else:
        subject = _subject(kind, Reader(document.get("metadata"), (*path, "metadata"), []))
        text = "skipped: only Services, EndpointSlices, Nodes and ServiceCIDRs are read"
        into.notes.append(Finding(subject, path, text, depth=len(path)))


def _subject(kind: str, metadata: Reader) -> str:
    namespace = metadata.text("namespace")
    name = metadata.text("name") or "without a name"
    return f"{kind} {namespace}/{name}" if namespace else f"{kind} {name}"


def _open(
    kind: str, document: Mapping[str, Any], findings: list[Finding], path: Path
) -> tuple[Reader, str, str]:
    """The object's reader, its namespace and its name; a missing name is a fault."""
    root = Reader(document, path, findings, depth=len(path))
    metadata = root.child("metadata")
    # The subject of messages is known only now; `default` is where the API server puts what names no namespace.
    namespace, name = metadata.text("namespace") or "default", metadata.text("name")
    root.subject = f"{kind} {namespace}/{name or '?'}"
    if not name:
        root.fault(("metadata", "name"), "the object has no name")
    return root, namespace, name


def _protocol(reader: Reader) -> Protocol | None:
    word = reader.text("protocol", "TCP")
    protocol = _PROTOCOLS.get(word)
    if protocol is None:
        reader.fault("protocol", f"{word!r} is not known", "it is one of TCP, UDP, SCTP")
    return protocol


def convert_service(document: Mapping[Any, Any], problems: list[Finding], path: Path = ()) -> Service | None:
    """A v1 Service; None, with problems, if any field that matters is wrong."""
    faults: list[Finding] = []
    root, namespace, name = _open("Service", document, faults, path)
    metadata, spec = root.child("metadata"), root.child("spec")
    labels, annotations = metadata.child("labels"), metadata.child("annotations")
    cluster_ips, headless = _cluster_ips(spec)
    affinity = spec.child("sessionAffinityConfig").child("clientIP")
    service = Service(
        namespace=namespace,
        name=name,
        type=spec.choice("type", ServiceType.CLUSTER_IP),
        ports=_service_ports(spec),
        cluster_ips=cluster_ips,
        headless=headless,
        external_ips=spec.addresses("externalIPs"),
        ingress=tuple(_ingress(root)),
        source_ranges=spec.prefixes("loadBalancerSourceRanges"),
        load_balancer_class=spec.text("loadBalancerClass"),
        allocate_node_ports=spec.flag("allocateLoadBalancerNodePorts", True),
        internal_traffic_policy=spec.choice("internalTrafficPolicy", TrafficPolicy.CLUSTER),
        external_traffic_policy=spec.choice("externalTrafficPolicy", TrafficPolicy.CLUSTER),
        health_check_node_port=spec.number("healthCheckNodePort", 0, 0, MAX_PORT, "port"),
        session_affinity=spec.choice("sessionAffinity", SessionAffinity.NONE),
        affinity_timeout_s=affinity.number(
            "timeoutSeconds", DEFAULT_AFFINITY_TIMEOUT_S, 1, MAX_AFFINITY_TIMEOUT_S, "timeout in seconds"
        ),
        publish_not_ready_addresses=spec.flag("publishNotReadyAddresses", False),
        traffic_distribution=spec.text("trafficDistribution"),
        topology_mode=annotations.text(TOPOLOGY_MODE_ANNOTATION),
        # An empty label counts too: kube-proxy selects by its presence.
        proxy_name=labels.text(PROXY_NAME_LABEL) if PROXY_NAME_LABEL in labels.raw else None,
    )
    problems.extend(faults)
    return None if faults else service


def _cluster_ips(spec: Reader) -> tuple[tuple[Address, ...], bool]:
    """`clusterIPs`, or `clusterIP` where a manifest says only that; and whether the service is headless."""
    single, several = spec.raw.get("clusterIP"), spec.raw.get("clusterIPs")
    if single == "None" or (isinstance(several, list) and "None" in several):
        return (), True
    first = spec.address("clusterIP")
    if not several:
        return (() if first is None else (first,)), False
    addresses = spec.addresses("clusterIPs")
    if first is not None and addresses and addresses[0] != first:
        spec.fault("clusterIPs", f"begins with {addresses[0]}", f"the first one is clusterIP, {first}")
    families = [address.version for address in addresses]
    if len(set(families)) < len(families):
        spec.fault("clusterIPs", "two addresses of one family", "at most one IPv4 and one IPv6 address")
    return addresses, False


def _service_ports(spec: Reader) -> tuple[ServicePort, ...]:
    ports: list[ServicePort] = []
    readers = spec.children("ports")
    names: set[str] = set()
    numbers: set[tuple[Protocol, int]] = set()
    for reader in readers:
        name = reader.text("name")
        protocol = _protocol(reader)
        port = reader.number("port", 0, 1, MAX_PORT, "port")
        if reader.raw.get("port") is None:
            reader.fault("port", "the port is missing", f"a port is 1 to {MAX_PORT}")
        if len(readers) > 1 and not name:
            reader.fault("name", "a port without a name", "with several ports each one has a name")
        elif name in names:
            reader.fault("name", f"{name!r} is the name of another port too", "names are unique")
        names.add(name)
        node_port = reader.number("nodePort", 0, 0, MAX_PORT, "port")
        target_port = _target_port(reader, port)
        if protocol is None or not port:
            continue
        if (protocol, port) in numbers:
            reader.fault("port", f"{protocol.name} {port} is given twice")
        numbers.add((protocol, port))
        app_protocol = reader.text("appProtocol")
        ports.append(ServicePort(name, protocol, port, target_port, node_port, app_protocol))
    return tuple(ports)


def _target_port(reader: Reader, port: int) -> int | str:
    value = reader.raw.get("targetPort")
    if isinstance(value, str) and value:
        return int(value) if value.isdecimal() and 1 <= int(value) <= MAX_PORT else value
    # Absent, empty and 0 mean: the same as the port.
    return port if value == "" else reader.number("targetPort", 0, 0, MAX_PORT, "port") or port


def _ingress(root: Reader) -> list[LoadBalancerIngress]:
    ingress = []
    for reader in root.child("status").child("loadBalancer").children("ingress"):
        mode = reader.choice("ipMode", IpMode.VIP)
        ingress.append(LoadBalancerIngress(reader.address("ip"), reader.text("hostname"), mode))
    return ingress


def convert_endpoint_slice(
    document: Mapping[Any, Any], problems: list[Finding], notes: list[Finding], path: Path = ()
) -> EndpointSlice | None:
    """A discovery/v1 EndpointSlice; None if it has faults (problems), or no service or address family (notes)."""
    faults: list[Finding] = []
    root, namespace, name = _open("EndpointSlice", document, faults, path)
    service = root.child("metadata").child("labels").text(SERVICE_NAME_LABEL)
    address_type = root.text("addressType")
    if address_type not in ("IPv4", "IPv6", "FQDN"):
        root.fault("addressType", f"{address_type!r} is not known", "it is one of IPv4, IPv6, FQDN")
    if faults:
        problems.extend(faults)
        return None
    if not service or address_type == "FQDN":
        why = "its addresses are names" if service else f"it has no label {SERVICE_NAME_LABEL}"
        notes.append(Finding(root.subject, path, f"skipped: {why}", depth=len(path)))
        return None
    family = Family.IPV4 if address_type == "IPv4" else Family.IPV6
    converted = EndpointSlice(
        namespace=namespace,
        name=name,
        service=service,
        family=family,
        ports=tuple(_endpoint_ports(root)),
        endpoints=_endpoints(root, family),
    )
    problems.extend(faults)
    return None if faults else converted


def _endpoint_ports(root: Reader) -> list[EndpointPort]:
    ports = []
    for reader in root.children("ports"):
        protocol = _protocol(reader)
        number = reader.number("port", 0, 1, MAX_PORT, "port")
        if protocol is not None:
            ports.append(EndpointPort(reader.text("name"), protocol, number or None))
    return ports


def _endpoints(root: Reader, family: Family) -> tuple[Endpoint, ...]:
    raw = root.raw.get("endpoints")
    if isinstance(raw, list):
        plain = [each for each in (_plain_endpoint(item, family) for item in raw) if each is not None]
        if len(plain) == len(raw):
            return tuple(plain)
    return tuple(_endpoint(reader, family) for reader in root.children("endpoints"))


def _plain_endpoint(raw: Any, family: Family) -> Endpoint | None:
    """An endpoint as controllers write them, in a tenth of the time; None if anything about it is unusual.

    There may be a hundred thousand of them, and all but a handful in hand-written manifests look like this.
    """
    try:
        [text] = raw["addresses"]
        address = parse_address(text)
        conditions, hints, target = raw.get("conditions"), raw.get("hints"), raw.get("targetRef")
        state = _NO_CONDITIONS if conditions is None else conditions
        ready, serving, terminating = state.get("ready"), state.get("serving"), state.get("terminating")
        words = (raw.get("nodeName"), raw.get("zone"), raw.get("hostname"))
        name = "" if target is None else f"{target['kind']} {target['namespace']}/{target['name']}"
    except (AttributeError, KeyError, TypeError, ValueError):
        return None
    if hints is not None or address.version != family:
        return None
    if not _FLAGS.issuperset(map(type, (ready, serving, terminating))) or not _WORDS.issuperset(
        map(type, words)
    ):
        return None
    node_name, zone, hostname = words
    return Endpoint(
        (address,),
        ready is not False,
        serving is not False,
        terminating is True,
        node_name or "",
        zone or "",
        hostname or "",
        target=name,
    )


def _endpoint(reader: Reader, family: Family) -> Endpoint:
    conditions, hints = reader.child("conditions"), reader.child("hints")
    target = reader.child("targetRef")
    kind = target.text("kind")
    addresses: list[Address] = []
    for index, text in enumerate(reader.texts("addresses")):
        try:
            address = parse_address(text)
        except ValueError as error:
            reader.fault(("addresses", index), str(error))
            continue
        if address.version != family:
            reader.fault(
                ("addresses", index), f"{address} is IPv{address.version}", f"addressType is IPv{family}"
            )
        addresses.append(address)
    if not reader.raw.get("addresses"):
        reader.fault("addresses", "an endpoint without address")
    return Endpoint(
        addresses=tuple(addresses),
        ready=conditions.flag("ready", True),
        serving=conditions.flag("serving", True),
        terminating=conditions.flag("terminating", False),
        node_name=reader.text("nodeName"),
        zone=reader.text("zone"),
        hostname=reader.text("hostname"),
        hint_zones=tuple(zone.text("name") for zone in hints.children("forZones")),
        hint_nodes=tuple(node.text("name") for node in hints.children("forNodes")),
        target=_subject(kind, target) if kind else "",
    )
