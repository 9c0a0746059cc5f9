"""Kubernetes' rules: Services and EndpointSlices in, VIPs out.  Pure functions, no I/O, no clock.

`endpoints` says which endpoints may serve, `exposure` at which addresses and how, `masquerade` whose address pods see,
`cleanup` which UDP flows end, `conflicts` who gets what two claim, `health` what load balancers hear, `nodeports` where
node ports answer, `verdict` why an endpoint serves or does not.
"""

from kuproxy.control.policy.cleanup import stale_udp
from kuproxy.control.policy.conflicts import settle
from kuproxy.control.policy.endpoints import Candidate, Categories, candidates_for, categorize
from kuproxy.control.policy.exposure import (
    ServiceVips,
    cluster_ip_guards,
    not_honoured,
    recommended_new_len,
    service_range_guards,
    service_vips,
    skip_reason,
    translate,
    vips_of,
)
from kuproxy.control.policy.health import HealthAnswer, health_answer, local_ready
from kuproxy.control.policy.masquerade import (
    PodTraffic,
    masquerade_cluster_ip,
    masquerade_external,
    origin_of,
    pod_ranges,
    pod_traffic,
)
from kuproxy.control.policy.nodeports import node_port_addresses, node_port_networks
from kuproxy.control.policy.verdict import Verdict, verdicts

__all__ = [
    "Candidate",
    "Categories",
    "HealthAnswer",
    "PodTraffic",
    "ServiceVips",
    "Verdict",
    "candidates_for",
    "categorize",
    "cluster_ip_guards",
    "health_answer",
    "local_ready",
    "masquerade_cluster_ip",
    "masquerade_external",
    "node_port_addresses",
    "node_port_networks",
    "not_honoured",
    "origin_of",
    "pod_ranges",
    "pod_traffic",
    "recommended_new_len",
    "service_range_guards",
    "service_vips",
    "settle",
    "skip_reason",
    "stale_udp",
    "translate",
    "verdicts",
    "vips_of",
]
