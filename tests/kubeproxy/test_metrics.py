"""Metrics under the names, labels and buckets of a real kube-proxy."""

from __future__ import annotations

import re
from pathlib import Path

from kuproxy.kubeproxy.health import ProxyHealth
from kuproxy.kubeproxy.metrics import ProxyMetrics

FIXTURES = Path(__file__).parents[1] / "fixtures/kubernetes-1.36/kube-proxy"
# What has no counterpart here: see kubeproxy.metrics.
ELSEWHERE = re.compile(r"rest_client_(?!requests_total)|kubeproxy_conntrack_reconciler_sync_duration_seconds")


def busy() -> ProxyMetrics:
    """As the recorded one: one whole sync, one clean-up of IPv4, one answer at each path."""
    metrics = ProxyMetrics(ProxyHealth(60), "10.0.0.1:6443", lambda: {200: 5, 0: 1})
    metrics.synced(0.02, 30, 40, full=True)
    metrics.ended_flows = {"IPv4": 2}
    metrics.health.answer("/healthz")
    metrics.health.answer("/livez")
    return metrics


def types(text: str) -> dict[str, str]:
    return dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))


def series(text: str) -> set[str]:
    return {re.sub(r" \S+$", "", line) for line in text.splitlines() if line and not line.startswith("#")}


def test_names_and_types_are_upstreams() -> None:
    recorded = types((FIXTURES / "metrics-names.txt").read_text())
    wanted = {name: kind for name, kind in recorded.items() if not ELSEWHERE.match(name)}
    assert types(busy().exposition().decode()) == wanted


def test_series_are_upstreams() -> None:
    """All that were recorded; the order of labels means nothing."""
    ours = series(busy().exposition().decode())
    recorded = (FIXTURES / "metrics-series.txt").read_text().split()
    missing = [each for each in recorded if not ELSEWHERE.match(each) and each not in ours]
    assert missing == []


def test_changes_wait_until_they_are_taken_over() -> None:
    metrics = busy()
    metrics.pending = (1, 3)
    text = metrics.exposition().decode()
    assert "kubeproxy_sync_proxy_rules_service_changes_pending 1.0" in text
    assert "kubeproxy_sync_proxy_rules_endpoint_changes_pending 3.0" in text
    assert "kubeproxy_sync_proxy_rules_service_changes_total 30.0" in text
    metrics.pending = (0, 0)
    metrics.synced(0.0005, 1, 3, full=False)
    metrics.programmed(1.2)
    metrics.no_local_endpoints["IPv4", "external"] = 3
    text = metrics.exposition().decode()
    assert "kubeproxy_sync_proxy_rules_endpoint_changes_pending 0.0" in text
    assert "kubeproxy_sync_proxy_rules_endpoint_changes_total 43.0" in text
    prefix = "kubeproxy_sync_partial_proxy_rules_duration_seconds"
    assert f'{prefix}_bucket{{ip_family="IPv6",le="0.001"}} 1.0' in text
    assert 'kubeproxy_network_programming_duration_seconds_bucket{ip_family="IPv4",le="1"} 0.0' in text
    assert 'kubeproxy_network_programming_duration_seconds_bucket{ip_family="IPv4",le="2"} 1.0' in text
    assert 'no_local_endpoints_total{ip_family="IPv4",traffic_policy="external"} 3.0' in text
    assert 'kubeproxy_conntrack_reconciler_deleted_entries_total{ip_family="IPv4"} 2.0' in text
    assert 'rest_client_requests_total{code="<error>",host="10.0.0.1:6443",method="GET"} 1.0' in text
