"""KubeProxyConfiguration v1alpha1: the file, with upstream's defaults and checks, and what we take from it.

Strict where upstream only warns: a field that nobody knows is refused with its line, because a typing error in
`nodePortAddresses` would otherwise open a port.
Source: pkg/proxy/apis/config/v1alpha1 (defaults.go, conversion.go) and config/validation, Kubernetes 1.36.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from msgspec.structs import replace

from kuproxy.codes import FlowState
from kuproxy.errors import ConfigError, Problem
from kuproxy.kube.manifest import line_of, read_documents
from kuproxy.kubeproxy import schema
from kuproxy.kubeproxy.check import PRIMARY, check, cidr, periods_of
from kuproxy.kubeproxy.decode import Fault, decode
from kuproxy.kubeproxy.duration import Duration, FlushFrequency
from kuproxy.kubeproxy.schema import KubeProxyConfiguration
from kuproxy.load import MANIFEST_BUCKETS, read_text
from kuproxy.model.config import MAX_BUCKETS, MAX_TIMEOUT_S, Settings
from kuproxy.model.node import DetectLocalMode, ProxySettings
from kuproxy.model.vip import Address, parse_address

__all__ = [
    "Endpoint",
    "ProxyConfig",
    "complete",
    "document_of",
    "from_document",
    "node_name_of",
    "proxy_config",
    "read_config",
]

HEALTHZ_PORT, METRICS_PORT = 10256, 10249
# Nothing waits longer than this for what has been heard to be in the tables, or the proxy is unhealthy: twice
# `syncPeriod` (cmd/kube-proxy/app/server.go).
HEALTHY_PERIODS = 2
# A bucket holds four flows.  Upstream's limit counts flows; twice as many places, so that few buckets are full.
FLOWS_PER_BUCKET = 2


class Endpoint(NamedTuple):
    """Where a server listens."""

    address: str
    port: int

    def __str__(self) -> str:
        return f"[{self.address}]:{self.port}" if ":" in self.address else f"{self.address}:{self.port}"


@dataclass(frozen=True, slots=True)
class ProxyConfig:
    """A configuration that has been checked, in the types that the proxy works with."""

    raw: KubeProxyConfiguration  # complete: with every default filled in
    healthz: Endpoint | None  # None: not served
    metrics: Endpoint | None
    proxy: ProxySettings
    settings: Settings
    healthy_within_s: float  # from a change that was heard to the tables
    node_ip: Address | None  # bindAddress, where it names one: the node's primary address


def read_config(path: Path) -> KubeProxyConfiguration:
    """The file, as it is.  Raises ConfigError with every fault that reading finds, each with its line."""
    file = str(path)
    text = read_text(path)
    documents = [each for each in read_documents(text, file) if each is not None]
    if len(documents) != 1 or not isinstance(documents[0], dict):
        raise ConfigError(Problem("is not one object", file, hint=f"it holds one {schema.KIND}"))
    faults: list[Fault] = []
    config = from_document(documents[0], faults)
    faults += check(config) if not faults else []
    if faults:
        problems = [
            Problem(message, file, line_of(text, (0, *_plain(where))), _dotted(where), hint)
            for where, message, hint in faults
        ]
        raise ConfigError(sorted(problems, key=lambda problem: problem.line))
    return config


def from_document(content: dict[str, Any], faults: list[Fault]) -> KubeProxyConfiguration:
    """Decode plain values and fill in the defaults; nothing raises, faults are collected."""
    for name, wanted in (("apiVersion", schema.API_VERSION), ("kind", schema.KIND)):
        if content.get(name) != wanted:
            found = repr(content[name]) if name in content else "absent"
            faults.append(Fault(((name,), f"is {found}", f"it is {wanted}")))
    if faults:
        return KubeProxyConfiguration()  # a file of another kind: its fields say nothing
    return complete(decode(KubeProxyConfiguration, content, faults))


def document_of(config: KubeProxyConfiguration) -> dict[str, Any]:
    """As `--write-config-to` writes it."""
    return schema.to_document(config)


def _plain(where: tuple[str | int, ...]) -> tuple[str | int, ...]:
    """A path that ends in `name[2].field` as YAML nodes are found: up to the name."""
    return tuple(
        each.partition("[")[0].partition(".")[0] if isinstance(each, str) else each for each in where
    )


def _dotted(where: tuple[str | int, ...]) -> str:
    return ".".join(map(str, where))


# ------------------------------------------------------------------------------------------------- defaults


def complete(config: KubeProxyConfiguration) -> KubeProxyConfiguration:
    """With every default.  Upstream keeps the periods once, for the mode in use, and so does what it writes."""
    bind = config.bind_address or "0.0.0.0"
    everywhere, loopback = ("[::]", "[::1]") if ":" in bind else ("0.0.0.0", "127.0.0.1")
    mode = config.mode or "iptables"
    names = config.node_port_addresses
    if names is None and mode == "nftables":
        names = [PRIMARY]
    return replace(
        config,
        bind_address=bind,
        client_connection=_client(config.client_connection),
        config_sync_period=config.config_sync_period or Duration.of(900),
        conntrack=_conntrack(config.conntrack),
        detect_local_mode=config.detect_local_mode or DetectLocalMode.CLUSTER_CIDR.value,
        healthz_bind_address=_with_port(config.healthz_bind_address or everywhere, HEALTHZ_PORT),
        metrics_bind_address=_with_port(config.metrics_bind_address or loopback, METRICS_PORT),
        iptables=replace(
            config.iptables,
            localhost_node_ports=config.iptables.localhost_node_ports is not False,
            masquerade_bit=_or(config.iptables.masquerade_bit, 14),
            **(_periods(config.iptables, 1) if mode == "iptables" else {}),
        ),
        ipvs=replace(config.ipvs, **(_periods(config.ipvs, 0) if mode == "ipvs" else {})),
        nftables=replace(
            config.nftables,
            masquerade_bit=_or(config.nftables.masquerade_bit, 14),
            **(_periods(config.nftables, 1) if mode == "nftables" else {}),
        ),
        logging=replace(
            config.logging,
            flush_frequency=config.logging.flush_frequency or FlushFrequency.of(5),
            format=config.logging.format or "text",
        ),
        mode=mode,
        node_port_addresses=names,
        oom_score_adj=_or(config.oom_score_adj, -999),
    )


def _or(value: int | None, default: int) -> int:
    return default if value is None else value


def _client(client: schema.ClientConnection) -> schema.ClientConnection:
    return replace(
        client,
        burst=client.burst or 10,
        content_type=client.content_type or "application/vnd.kubernetes.protobuf",
        qps=client.qps or 5,
    )


def _conntrack(conntrack: schema.Conntrack) -> schema.Conntrack:
    def given(value: Duration | None, hours: int) -> Duration:
        return Duration.of(hours * 3600) if value is None else value

    return replace(
        conntrack,
        max_per_core=_or(conntrack.max_per_core, 32 * 1024),
        min=_or(conntrack.min, 128 * 1024),
        tcp_close_wait_timeout=given(conntrack.tcp_close_wait_timeout, 1),
        tcp_established_timeout=given(conntrack.tcp_established_timeout, 24),
    )


def _periods(part: schema.IpTables | schema.Ipvs | schema.NfTables, least_s: int) -> dict[str, Duration]:
    return {
        "sync_period": part.sync_period or Duration.of(30),
        "min_sync_period": part.min_sync_period or Duration.of(least_s),
    }


def _with_port(text: str, port: int) -> str:
    """`AppendPortIfNeeded`: an address alone gets the port, anything else stays for the check to judge."""
    bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    try:
        address = parse_address(bare)
    except ValueError:
        return text
    return str(Endpoint(str(address), port))


# ------------------------------------------------------------------------------------------- what we take from it


def proxy_config(config: KubeProxyConfiguration, cores: int | None = None) -> ProxyConfig:
    """Of a complete and checked configuration.  Raises ConfigError for what only the whole shows."""
    periods = periods_of(config)
    masquerade = config.nftables if config.mode == "nftables" else config.iptables
    names = config.node_port_addresses or []
    bind = parse_address(config.bind_address)
    return ProxyConfig(
        raw=config,
        healthz=endpoint_of(config.healthz_bind_address),
        metrics=endpoint_of(config.metrics_bind_address),
        proxy=ProxySettings(
            detect_local_mode=DetectLocalMode(config.detect_local_mode),
            cluster_cidrs=tuple(cidr(each) for each in config.cluster_cidr.split(",") if each),
            bridge_interface=config.detect_local.bridge_interface,
            interface_name_prefix=config.detect_local.interface_name_prefix,
            masquerade_all=masquerade.masquerade_all,
            node_port_addresses=None if names == [PRIMARY] else tuple(map(cidr, names)),
        ),
        settings=_settings(config.conntrack, cores or os.cpu_count() or 1),
        healthy_within_s=HEALTHY_PERIODS * periods.sync_period.seconds,
        node_ip=None if bind.is_unspecified else bind,
    )


def _settings(conntrack: schema.Conntrack, cores: int) -> Settings:
    """Room for as many flows as upstream asks conntrack for, and its idle times; zero leaves ours."""
    buckets = MANIFEST_BUCKETS
    if conntrack.max_per_core:
        flows = max(conntrack.max_per_core * cores, conntrack.min or 0)
        buckets = min(1 << (max(flows // FLOWS_PER_BUCKET, 1) - 1).bit_length(), MAX_BUCKETS)
    times = (
        (FlowState.TCP_ESTABLISHED, conntrack.tcp_established_timeout),
        (FlowState.UDP, conntrack.udp_stream_timeout),
    )
    timeouts = tuple((state, min(each.seconds, MAX_TIMEOUT_S)) for state, each in times if each)
    return Settings(buckets=buckets, timeouts_s=timeouts)


def endpoint_of(text: str) -> Endpoint | None:
    """Of `1.2.3.4:80` or `[::]:80`, checked already; nothing of nothing."""
    if not text:
        return None
    host, _, port = text.rpartition(":")
    return Endpoint(host.removeprefix("[").removesuffix("]"), int(port))


def node_name_of(override: str) -> str:
    """Whose proxy this is: what was said, else the host's name, in small letters.  Raises ConfigError."""
    name = (override or socket.gethostname()).strip().lower()
    if not name:
        raise ConfigError(
            Problem("the node has no name", field="hostnameOverride", hint="say --hostname-override NAME")
        )
    return name
