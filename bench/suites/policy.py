"""Policy: services and slices as the API server sends them, converted and decided, all at once and one at a time."""

import itertools
import time
from ipaddress import ip_address, ip_network

from bench.harness import Case, Sample, Scale
from bench.suites.graph import count_name
from kuproxy.control.policy import translate, vips_of
from kuproxy.kube.convert import convert_endpoint_slice, convert_service
from kuproxy.model.node import NodeInfo, NodeView, ProxySettings

PODS_EACH = 10
VIEW = NodeView(
    NodeInfo("node-1", "zone-a", (ip_address("192.0.2.1"),)),
    ProxySettings(cluster_cidrs=(ip_network("10.128.0.0/9"),), service_cidrs=(ip_network("10.64.0.0/10"),)),
)


def service_document(number: int) -> dict[str, object]:
    """Service `number`, reduced to what the API server always fills in."""
    address = str(ip_address("10.64.0.1") + number)
    return {
        "kind": "Service",
        "metadata": {"name": f"service-{number}", "namespace": "bench"},
        "spec": {
            "type": "ClusterIP",
            "clusterIP": address,
            "clusterIPs": [address],
            "ports": [{"name": "http", "port": 80, "protocol": "TCP", "targetPort": 8080}],
            "sessionAffinity": "None",
            "internalTrafficPolicy": "Cluster",
        },
        "status": {"loadBalancer": {}},
    }


def slice_document(number: int) -> dict[str, object]:
    """The slice of service `number`."""
    first = ip_address("10.128.0.1") + number * PODS_EACH
    return {
        "kind": "EndpointSlice",
        "metadata": {
            "name": f"service-{number}-x",
            "namespace": "bench",
            "labels": {"kubernetes.io/service-name": f"service-{number}"},
        },
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        "endpoints": [
            {
                "addresses": [str(first + pod)],
                "conditions": {"ready": True, "serving": True, "terminating": False},
                "nodeName": f"node-{pod}",
                "zone": "zone-a",
                "targetRef": {"kind": "Pod", "namespace": "bench", "name": f"pod-{number}-{pod}"},
            }
            for pod in range(PODS_EACH)
        ],
    }


class PolicyCase(Case):
    """Everything at once, as after the first list; then one service again and again, as after a watch event."""

    unit = "ms"

    def __init__(self, services: int):
        super().__init__(f"policy-{count_name(services)}service-{PODS_EACH}pod", "one node's view")
        self._services = services

    def prepare(self) -> None:
        self._documents = [(service_document(n), slice_document(n)) for n in range(self._services)]

    def sample(self) -> Sample:
        findings: list = []
        times = [time.thread_time()]
        services = [convert_service(document, findings) for document, _ in self._documents]
        slices = [convert_endpoint_slice(document, findings, findings) for _, document in self._documents]
        times.append(time.thread_time())
        vips = vips_of(services, slices, VIEW)
        times.append(time.thread_time())
        assert not findings
        assert len(vips) == 2 * self._services + 1
        times.append(time.thread_time())
        some = list(zip(services, slices, strict=True))[:1000]
        for service, endpoint_slice in some:
            translate(service, [endpoint_slice], VIEW)
        times.append(time.thread_time())
        convert, decide, _, single = ((b - a) * 1e3 for a, b in itertools.pairwise(times))
        return {
            "convert": convert,
            "decide": decide,
            "convert and decide": convert + decide,
            "one service": single / len(some),
        }


def cases(scale: Scale) -> list[Case]:
    """Ten thousand services, or as many as the scale allows."""
    return [PolicyCase(min(10_000, scale.most_vips))]
