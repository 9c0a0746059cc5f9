"""KubeProxyConfiguration v1alpha1 as users write it: every field, with upstream's names.

Defaults that depend on other fields are filled in by `kubeproxy.config`; here an absent field is empty, zero or None.
Source: k8s.io/kube-proxy/config/v1alpha1 and k8s.io/component-base (logs, client connection), Kubernetes 1.36.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import UNSET, Struct, UnsetType, field

from kuproxy.kubeproxy.duration import Duration, FlushFrequency

__all__ = ["API_VERSION", "KIND", "KubeProxyConfiguration", "to_document"]

API_VERSION = "kubeproxy.config.k8s.io/v1alpha1"
KIND = "KubeProxyConfiguration"


class Part(Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """Any object of the file.  Fields of type `... | UnsetType` are left out when they are not given."""


class ClientConnection(Part, frozen=True):
    accept_content_types: str = ""
    burst: int = 0
    content_type: str = ""
    kubeconfig: str = ""
    qps: float = 0


class Conntrack(Part, frozen=True):
    max_per_core: int | None = None
    min: int | None = None
    tcp_be_liberal: bool = False
    tcp_close_wait_timeout: Duration | None = None
    tcp_established_timeout: Duration | None = None
    udp_stream_timeout: Duration = Duration(0)
    udp_timeout: Duration = Duration(0)


class DetectLocal(Part, frozen=True):
    bridge_interface: str = ""
    interface_name_prefix: str = ""


class IpTables(Part, frozen=True):
    localhost_node_ports: bool | None = None
    masquerade_all: bool = False
    masquerade_bit: int | None = None
    min_sync_period: Duration = Duration(0)
    sync_period: Duration = Duration(0)


class Ipvs(Part, frozen=True):
    exclude_cidrs: list[str] | None = field(default=None, name="excludeCIDRs")
    min_sync_period: Duration = Duration(0)
    scheduler: str = ""
    strict_arp: bool = field(default=False, name="strictARP")
    sync_period: Duration = Duration(0)
    tcp_fin_timeout: Duration = Duration(0)
    tcp_timeout: Duration = Duration(0)
    udp_timeout: Duration = Duration(0)


class NfTables(Part, frozen=True):
    masquerade_all: bool = False
    masquerade_bit: int | None = None
    min_sync_period: Duration = Duration(0)
    sync_period: Duration = Duration(0)


class LogStream(Part, frozen=True):
    info_buffer_size: str | int = "0"
    split_stream: bool | UnsetType = UNSET


class LogOptions(Part, frozen=True):
    json: LogStream = LogStream()
    text: LogStream = LogStream()


class VModule(Part, frozen=True):
    file_pattern: str
    verbosity: int


class Logging(Part, frozen=True):
    flush_frequency: FlushFrequency = FlushFrequency(0)
    format: str = ""
    options: LogOptions = LogOptions()
    verbosity: int = 0
    vmodule: list[VModule] | UnsetType = UNSET


class WinKernel(Part, frozen=True):
    enable_dsr: bool = field(default=False, name="enableDSR")
    forward_health_check_vip: bool = False
    network_name: str = ""
    root_hns_endpoint_name: str = ""
    source_vip: str = ""


class KubeProxyConfiguration(Part, frozen=True):
    """The whole file."""

    api_version: str = API_VERSION
    bind_address: str = ""
    bind_address_hard_fail: bool = False
    client_connection: ClientConnection = ClientConnection()
    cluster_cidr: str = field(default="", name="clusterCIDR")
    config_sync_period: Duration = Duration(0)
    conntrack: Conntrack = Conntrack()
    detect_local: DetectLocal = DetectLocal()
    detect_local_mode: str = ""
    enable_profiling: bool = False
    feature_gates: dict[str, bool] | UnsetType = UNSET
    healthz_bind_address: str = ""
    hostname_override: str = ""
    iptables: IpTables = IpTables()
    ipvs: Ipvs = Ipvs()
    kind: str = KIND
    logging: Logging = Logging()
    metrics_bind_address: str = ""
    mode: str = ""
    nftables: NfTables = NfTables()
    node_port_addresses: list[str] | None = None
    oom_score_adj: int | None = None
    port_range: str = ""
    show_hidden_metrics_for_version: str = ""
    windows_run_as_service: bool | UnsetType = UNSET
    winkernel: WinKernel = WinKernel()


def to_document(config: KubeProxyConfiguration) -> dict[str, Any]:
    """As plain values, durations as Go prints them."""
    plain: dict[str, Any] = msgspec.to_builtins(_printable(config))
    return plain


def _printable(value: Any) -> Any:
    """msgspec writes subclasses of int as numbers."""
    if isinstance(value, Struct):
        return {
            each.encode_name: _printable(found)
            for each in msgspec.structs.fields(value)
            if (found := getattr(value, each.name)) is not UNSET
        }
    if isinstance(value, list):
        return [_printable(each) for each in value]
    return str(value) if isinstance(value, Duration) else value
