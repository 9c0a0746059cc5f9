"""The kinds that the fake API server has, and what kubectl wants to know of them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Kind:
    plural: str
    kind: str
    group: str = ""  # empty: the core group
    version: str = "v1"
    namespaced: bool = True
    status: bool = False  # has a /status subresource
    short: tuple[str, ...] = ()

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def prefix(self) -> str:
        return f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"

    @property
    def resource(self) -> str:
        """As messages name it: `endpointslices.discovery.k8s.io`."""
        return f"{self.plural}.{self.group}" if self.group else self.plural


KINDS = {
    kind.plural: kind
    for kind in (
        Kind("namespaces", "Namespace", namespaced=False, status=True, short=("ns",)),
        Kind("nodes", "Node", namespaced=False, status=True, short=("no",)),
        Kind("services", "Service", status=True, short=("svc",)),
        Kind("configmaps", "ConfigMap", short=("cm",)),
        Kind("events", "Event", short=("ev",)),
        Kind("endpointslices", "EndpointSlice", group="discovery.k8s.io"),
        Kind(
            "servicecidrs", "ServiceCIDR", group="networking.k8s.io", namespaced=False, status=True,
        ),
    )
}  # fmt: skip

# Lists that a strategic merge patch merges by a key, by kind and path (k8s.io/api, patchMergeKey tags);
# every other list is replaced.  An empty key: a set of plain values.
MERGE_KEYS = {
    ("Service", "spec.ports"): "port",
    ("Service", "status.conditions"): "type",
    ("Node", "spec.taints"): "key",
    ("Node", "spec.podCIDRs"): "",
    ("Node", "status.addresses"): "type",
    ("Node", "status.conditions"): "type",
    ("ServiceCIDR", "status.conditions"): "type",
    ("*", "metadata.finalizers"): "",
    ("*", "metadata.ownerReferences"): "uid",
}
