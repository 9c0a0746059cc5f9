"""What dashboards and alerts for kube-proxy read: its metrics, under its names.

Missing is what has no counterpart: a time for ending flows apart from the rest, and what client-go measures of each
request.  Both families are one proxy here and are taken over together: their series say the same.
Source: the names, labels and buckets of pkg/proxy/metrics/metrics.go and of client-go's metrics, Kubernetes 1.36.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import generate_latest

from kuproxy.kubeproxy.health import FAMILIES, ProxyHealth

__all__ = ["ProxyMetrics"]

_SYNC_BUCKETS_S = tuple(0.001 * 2**power for power in range(15))
# How long from the change of an endpoint to the tables of this node: 0.25 s to 5 min.
_PROGRAMMING_BUCKETS_S = (0.25, 0.5, *range(1, 60), *range(60, 120, 5), *range(120, 301, 30))


class Histogram:
    """Counts of what was observed, up to each bound (seconds)."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, seconds: float) -> None:
        self._counts[bisect.bisect_left(self._bounds, seconds)] += 1
        self._sum += seconds

    @property
    def count(self) -> int:
        return sum(self._counts)

    def add_to(self, metric: HistogramMetricFamily, labels: list[str]) -> None:
        total, buckets = 0, []
        for bound, count in zip((*self._bounds, float("inf")), self._counts, strict=True):
            total += count
            buckets.append(("+Inf" if bound == float("inf") else f"{bound:.6g}", total))
        metric.add_metric(labels, buckets, self._sum)


@dataclass(slots=True)
class ProxyMetrics:
    """Counted as it happens, told when asked."""

    health: ProxyHealth
    host: str = ""  # of the API server, as URLs have it
    answers: Callable[[], dict[int, int]] = dict  # the API server's, by status; 0: there was none
    queued_at_s: float = 0.0
    synced_at_s: float = 0.0
    service_changes: int = 0
    endpoint_changes: int = 0
    pending: tuple[int, int] = (0, 0)  # changed Services and slices that wait
    ended_flows: dict[str, int] = field(default_factory=dict)  # by family: their pods serve no longer
    no_local_endpoints: dict[tuple[str, str], int] = field(
        default_factory=dict
    )  # by family and traffic policy
    _full: Histogram = field(default_factory=lambda: Histogram(_SYNC_BUCKETS_S))
    _partial: Histogram = field(default_factory=lambda: Histogram(_SYNC_BUCKETS_S))
    _all: Histogram = field(default_factory=lambda: Histogram(_SYNC_BUCKETS_S))
    _programming: Histogram = field(default_factory=lambda: Histogram(_PROGRAMMING_BUCKETS_S))

    def synced(self, took_s: float, services: int, endpoints: int, *, full: bool) -> None:
        """So many changed Services and slices have been taken over."""
        self.service_changes += services
        self.endpoint_changes += endpoints
        self._all.observe(took_s)
        (self._full if full else self._partial).observe(took_s)

    def programmed(self, since_change_s: float) -> None:
        """An endpoint's change has reached the tables, so long after it happened in the cluster."""
        self._programming.observe(since_change_s)

    def exposition(self) -> bytes:
        """In Prometheus' text format."""
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_Collector(self))
        return generate_latest(registry)

    def collect(self) -> Iterator[Metric]:
        yield from self._histograms()
        yield from self._gauges()
        for name, sentence, number in (
            ("service_changes", "Services that have changed", self.service_changes),
            ("endpoint_changes", "Slices that have changed", self.endpoint_changes),
        ):
            yield CounterMetricFamily(f"kubeproxy_sync_proxy_rules_{name}", sentence, value=number)
        ended = CounterMetricFamily(
            "kubeproxy_conntrack_reconciler_deleted_entries",
            "Flows ended: their pod stopped",
            labels=["ip_family"],
        )
        for family in FAMILIES:
            ended.add_metric([family], self.ended_flows.get(family, 0))
        yield ended
        for path in ("healthz", "livez"):
            asked = CounterMetricFamily(f"kubeproxy_proxy_{path}", f"Answers at /{path}", labels=["code"])
            for (which, status), count in sorted(self.health.answered.items()):
                if which == f"/{path}":
                    asked.add_metric([str(status)], count)
            yield asked
        requests = CounterMetricFamily(
            "rest_client_requests", "Requests to the API server", labels=["code", "host", "method"]
        )
        for status, count in sorted(self.answers().items()):
            requests.add_metric([str(status) if status else "<error>", self.host, "GET"], count)
        yield requests

    def _histograms(self) -> Iterator[Metric]:
        named = [
            ("sync_proxy_rules_duration_seconds", "Taking over changes", self._all),
            ("sync_full_proxy_rules_duration_seconds", "Taking over everything anew", self._full),
            ("sync_partial_proxy_rules_duration_seconds", "Taking over single changes", self._partial),
            (
                "network_programming_duration_seconds",
                "From a change in the cluster to here",
                self._programming,
            ),
        ]
        for name, sentence, histogram in named:
            metric = HistogramMetricFamily(f"kubeproxy_{name}", sentence, labels=["ip_family"])
            for family in FAMILIES if histogram.count else ():
                histogram.add_to(metric, [family])
            yield metric

    def _gauges(self) -> Iterator[Metric]:
        for name, sentence, when in (
            ("last_queued_timestamp_seconds", "When a change was last heard", self.queued_at_s),
            ("last_timestamp_seconds", "When everything heard was last taken over", self.synced_at_s),
        ):
            gauge = GaugeMetricFamily(f"kubeproxy_sync_proxy_rules_{name}", sentence, labels=["ip_family"])
            for family in FAMILIES:
                gauge.add_metric([family], when)
            yield gauge
        for name, sentence, number in (
            ("service_changes_pending", "Changed Services that wait", self.pending[0]),
            ("endpoint_changes_pending", "Changed slices that wait", self.pending[1]),
        ):
            yield GaugeMetricFamily(f"kubeproxy_sync_proxy_rules_{name}", sentence, value=number)
        none_here = GaugeMetricFamily(
            "kubeproxy_sync_proxy_rules_no_local_endpoints_total",
            "Services of traffic policy Local that have endpoints, but none here",
            labels=["ip_family", "traffic_policy"],
        )
        for family in FAMILIES:
            for policy in ("internal", "external"):
                none_here.add_metric([family, policy], self.no_local_endpoints.get((family, policy), 0))
        yield none_here


class _Collector:
    def __init__(self, metrics: ProxyMetrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        """Without what has never happened: upstream too names a metric when it has a first value."""
        yield from (metric for metric in self._metrics.collect() if metric.samples)
