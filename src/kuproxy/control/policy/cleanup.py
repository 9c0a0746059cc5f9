"""Which UDP flows must end: nothing in UDP tells a client that its pod has gone, and a busy flow never expires.

Rule: kube-proxy's pkg/proxy/conntrack/cleanup.go. What counts is whether an endpoint serves, not whether it would be
chosen: policies, topology and readiness never end a flow, as they do not in TCP.  Unlike kube-proxy we also end the
flows of a service without any serving endpoint: its clients are then refused instead of sent to nobody.
"""

from __future__ import annotations

from kuproxy.control.policy.exposure import ServiceVips
from kuproxy.model.vip import Pod, VipKey

__all__ = ["stale_udp"]


def stale_udp(old: ServiceVips, new: ServiceVips) -> list[tuple[VipKey, Pod]]:
    """Pods whose UDP flows end with this change, by VIP, in the form of `model.config.Config.flushed`.

    A VIP that goes takes its flows with it, so that it is not named.  The pods' ports are their own, never 0.
    """
    now = dict(new.serving)
    return [(key, pod) for key, before in old.serving if key in now for pod in sorted(before - now[key])]
