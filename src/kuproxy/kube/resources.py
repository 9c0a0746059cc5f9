"""What is watched: where it lies, and which part of it.

The selectors are those of the upstream kube-proxy: a Service or a slice with the label
`service.kubernetes.io/service-proxy-name` belongs to another proxy, whatever the label says, and slices of headless
services are none of a proxy's business.

Source: k8s.io/kubernetes cmd/kube-proxy/app (the informers' list options).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

from kuproxy.kube.objects import EndpointSlice, Item, ItemDecoder, Node, Service, ServiceCIDR

__all__ = [
    "ENDPOINT_SLICES",
    "SERVICES",
    "SERVICE_CIDRS",
    "Resource",
    "endpoint_slices",
    "own_node",
    "services",
]

T = TypeVar("T", bound=Item)


@dataclass(frozen=True, slots=True)
class Resource(Generic[T]):
    """One collection of the API."""

    plural: str  # `services`, as messages and RBAC rules have it
    path: str
    decoder: ItemDecoder[T]
    label_selector: str = ""
    field_selector: str = ""
    optional: bool = False  # a server that has no such resource (404) has none of its objects either


PROXY_NAME = "service.kubernetes.io/service-proxy-name"


def services(proxy_name: str | None = None) -> Resource[Service]:
    """The services of the proxy with this name; of None: those that name no proxy."""
    return Resource("services", "/api/v1/services", ItemDecoder(Service), label_selector=_of(proxy_name))


def endpoint_slices(proxy_name: str | None = None) -> Resource[EndpointSlice]:
    """The slices of these services: controllers copy the services' labels to them."""
    return Resource(
        "endpointslices",
        "/apis/discovery.k8s.io/v1/endpointslices",
        ItemDecoder(EndpointSlice),
        label_selector=f"!service.kubernetes.io/headless,{_of(proxy_name)}",
    )


def _of(proxy_name: str | None) -> str:
    return f"!{PROXY_NAME}" if proxy_name is None else f"{PROXY_NAME}={proxy_name}"


SERVICES = services()
ENDPOINT_SLICES = endpoint_slices()
# v1 since Kubernetes 1.33; older clusters have one range for services, and it is configured.
SERVICE_CIDRS = Resource(
    "servicecidrs",
    "/apis/networking.k8s.io/v1/servicecidrs",
    ItemDecoder(ServiceCIDR),
    optional=True,
)


def own_node(name: str) -> Resource[Node]:
    """This node alone: a list of one, chosen by its name."""
    return Resource("nodes", "/api/v1/nodes", ItemDecoder(Node), field_selector=f"metadata.name={name}")
