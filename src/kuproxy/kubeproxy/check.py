"""What upstream's validation refuses, with the field as the file has it and what would be right.

Source: pkg/proxy/apis/config/validation/validation.go, Kubernetes 1.36.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from ipaddress import ip_network

from kuproxy.errors import ConfigError
from kuproxy.kubeproxy.decode import Fault
from kuproxy.kubeproxy.duration import Duration
from kuproxy.kubeproxy.schema import IpTables, Ipvs, KubeProxyConfiguration, NfTables
from kuproxy.model.node import DetectLocalMode, ProxySettings
from kuproxy.model.vip import Prefix, parse_address

__all__ = ["MODES", "PRIMARY", "check", "cidr", "periods_of"]

MODES = ("iptables", "ipvs", "nftables")
PRIMARY = "primary"  # nodePortAddresses: the addresses of the Node object
_SCHEDULERS = ("", "rr", "wrr", "lc", "wlc", "lblc", "lblcr", "sh", "dh", "sed", "nq", "mh")
_PORT_RANGE = re.compile(r"\s*|\d+|\d+\s*[-+]\s*\d+")  # utilnet.ParsePortRange


def cidr(text: str) -> Prefix:
    """ADDRESS/LENGTH; bits beyond the length are ignored, as Go does.  Raises ValueError."""
    if "/" not in text:
        raise ValueError(f"{text!r} is not a prefix")
    return ip_network(text.strip(), strict=False)


def periods_of(config: KubeProxyConfiguration) -> IpTables | Ipvs | NfTables:
    """The section with the periods of the mode in use."""
    if config.mode == "nftables":
        return config.nftables
    return config.ipvs if config.mode == "ipvs" else config.iptables


def check(config: KubeProxyConfiguration) -> list[Fault]:
    """Of a complete configuration: everything that is wrong."""
    return [*_general(config), *_addresses(config), *_periods(config), *_conntrack(config), *_local(config)]


def _one_of(where: str, value: str, possible: tuple[str, ...]) -> Iterator[Fault]:
    if value not in possible:
        hint = "it is one of " + ", ".join(filter(None, possible))
        yield Fault(((*where.split("."),), f"{value!r} is not possible", hint))


def _within(where: str, value: int | None, low: int, high: int | None) -> Iterator[Fault]:
    if value is not None and (value < low or (high is not None and value > high)):
        hint = f"it is {low} to {high}" if high is not None else f"it is {low} or more"
        yield Fault(((*where.split("."),), f"{value} is out of range", hint))


def _general(config: KubeProxyConfiguration) -> Iterator[Fault]:
    yield from _one_of("mode", config.mode, MODES)
    yield from _one_of("logging.format", config.logging.format, ("text", "json"))
    if config.mode == "ipvs":
        yield from _one_of("ipvs.scheduler", config.ipvs.scheduler, _SCHEDULERS)
        yield from _prefixes("ipvs.excludeCIDRs", config.ipvs.exclude_cidrs or [])
    yield from _within("oomScoreAdj", config.oom_score_adj, -1000, 1000)
    yield from _within("iptables.masqueradeBit", config.iptables.masquerade_bit, 0, 31)
    yield from _within("nftables.masqueradeBit", config.nftables.masquerade_bit, 0, 31)
    yield from _within("clientConnection.burst", config.client_connection.burst, 0, None)
    if not _PORT_RANGE.fullmatch(config.port_range):
        yield Fault((("portRange",), f"{config.port_range!r} is not a range of ports", "as 300-2000"))


def _addresses(config: KubeProxyConfiguration) -> Iterator[Fault]:
    try:
        parse_address(config.bind_address)
    except ValueError as error:
        yield Fault((("bindAddress",), str(error), "as 0.0.0.0, :: or an address of the node"))
    for where, text in (
        ("healthzBindAddress", config.healthz_bind_address),
        ("metricsBindAddress", config.metrics_bind_address),
    ):
        if text and not _is_endpoint(text):  # only a flag can leave it empty
            yield Fault(((where,), f"{text!r} is not an address and port", "as 0.0.0.0:10256 or [::]:10256"))
    names = config.node_port_addresses or []
    if PRIMARY in names and len(names) > 1:
        hint = "list prefixes, or `primary` alone"
        yield Fault((("nodePortAddresses",), "`primary` stands beside others", hint))
    elif names != [PRIMARY]:
        yield from _prefixes("nodePortAddresses", names, f" or the word {PRIMARY}")


def _is_endpoint(text: str) -> bool:
    host, colon, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if ":" in host and not bracketed:
        return False
    try:
        parse_address(host[1:-1] if bracketed else host)
    except ValueError:
        return False
    return bool(colon) and port.isdecimal() and 1 <= int(port) <= 65535


def _prefixes(where: str, texts: list[str], otherwise: str = "") -> Iterator[Fault]:
    for number, text in enumerate(texts):
        try:
            cidr(text)
        except ValueError:
            path: tuple[str | int, ...] = (*where.split("."), number)
            yield Fault((path, f"{text!r} is not a prefix", f"write ADDRESS/LENGTH{otherwise}"))


def _periods(config: KubeProxyConfiguration) -> Iterator[Fault]:
    """Only those of the mode in use count."""
    if config.mode in MODES:
        part, where = periods_of(config), (config.mode, "syncPeriod")
        if part.sync_period <= 0:
            yield Fault((where, f"{part.sync_period} is not possible", "it is longer than 0s"))
        elif part.min_sync_period > part.sync_period:
            hint = f"it is at least minSyncPeriod, {part.min_sync_period}"
            yield Fault((where, f"{part.sync_period} is not possible", hint))
        yield from _not_negative(f"{config.mode}.minSyncPeriod", part.min_sync_period)
    if config.config_sync_period <= 0:
        text = f"{config.config_sync_period} is not possible"
        yield Fault((("configSyncPeriod",), text, "it is longer than 0s"))
    for name, value in (
        ("tcpTimeout", config.ipvs.tcp_timeout),
        ("tcpFinTimeout", config.ipvs.tcp_fin_timeout),
        ("udpTimeout", config.ipvs.udp_timeout),
    ):
        yield from _not_negative(f"ipvs.{name}", value)


def _not_negative(where: str, value: Duration | None) -> Iterator[Fault]:
    if value is not None and value < 0:
        yield Fault(((*where.split("."),), f"{value} is not possible", "it is 0s or longer"))


def _conntrack(config: KubeProxyConfiguration) -> Iterator[Fault]:
    conntrack = config.conntrack
    yield from _within("conntrack.maxPerCore", conntrack.max_per_core, 0, None)
    yield from _within("conntrack.min", conntrack.min, 0, None)
    yield from _not_negative("conntrack.tcpEstablishedTimeout", conntrack.tcp_established_timeout)
    yield from _not_negative("conntrack.tcpCloseWaitTimeout", conntrack.tcp_close_wait_timeout)
    yield from _not_negative("conntrack.udpTimeout", conntrack.udp_timeout)
    yield from _not_negative("conntrack.udpStreamTimeout", conntrack.udp_stream_timeout)


def _local(config: KubeProxyConfiguration) -> Iterator[Fault]:
    """How pods' traffic is told from the rest; `ProxySettings` knows what each mode needs."""
    modes = tuple(mode.value for mode in DetectLocalMode)
    yield from _one_of("detectLocalMode", config.detect_local_mode, modes)
    texts = config.cluster_cidr.split(",") if config.cluster_cidr else []
    prefixes = []
    for text in texts:
        try:
            prefixes.append(cidr(text))
        except ValueError:
            hint = "one prefix, or one of each family with a comma between, as 10.244.0.0/16,fd00:10:244::/56"
            yield Fault((("clusterCIDR",), f"{text!r} is not a prefix", hint))
    if config.detect_local_mode in modes:
        try:
            ProxySettings(
                detect_local_mode=DetectLocalMode(config.detect_local_mode),
                cluster_cidrs=tuple(prefixes),
                bridge_interface=config.detect_local.bridge_interface,
                interface_name_prefix=config.detect_local.interface_name_prefix,
            )
        except ConfigError as error:
            for each in error.problems:
                yield Fault(((*each.field.split("."),), each.message, each.hint))
