"""The flags of kube-proxy: which there are, what they set, and which of them a configuration file silences.

Upstream reads the flags into the configuration that the file would otherwise give; with a file, all but a few are
ignored without a word.  Here the word is said.
Source: cmd/kube-proxy/app/options.go, Kubernetes 1.36.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from msgspec.structs import replace as with_fields

from kuproxy.errors import ConfigError, Problem
from kuproxy.kubeproxy import schema
from kuproxy.kubeproxy.check import check
from kuproxy.kubeproxy.config import from_document, read_config
from kuproxy.kubeproxy.decode import Fault
from kuproxy.kubeproxy.schema import KubeProxyConfiguration

__all__ = ["FLAGS", "Given", "add_flags", "configuration"]


@dataclass(frozen=True, slots=True)
class Flag:
    """One flag and the field that it stands for."""

    name: str
    path: str
    kind: type  # str, int, float, bool, list or dict (NAME=BOOL,...)
    help: str
    beside_file: bool = False  # it counts even if there is a file


FLAGS = (
    Flag(
        "bind-address", "bindAddress", str, "The node's primary IP address, if the Node object has another."
    ),
    Flag("bind-address-hard-fail", "bindAddressHardFail", bool, "End if a port cannot be opened."),
    Flag("cluster-cidr", "clusterCIDR", str, "The pods' addresses, one prefix of each family."),
    Flag("config-sync-period", "configSyncPeriod", str, "Without effect."),
    Flag("conntrack-max-per-core", "conntrack.maxPerCore", int, "Flows to remember, per core."),
    Flag("conntrack-min", "conntrack.min", int, "Flows to remember, at least."),
    Flag("conntrack-tcp-be-liberal", "conntrack.tcpBeLiberal", bool, "Without effect."),
    Flag("conntrack-tcp-timeout-close-wait", "conntrack.tcpCloseWaitTimeout", str, "Without effect."),
    Flag(
        "conntrack-tcp-timeout-established",
        "conntrack.tcpEstablishedTimeout",
        str,
        "Idle time of connections.",
    ),
    Flag("conntrack-udp-timeout", "conntrack.udpTimeout", str, "Without effect."),
    Flag("conntrack-udp-timeout-stream", "conntrack.udpStreamTimeout", str, "Idle time of UDP flows."),
    Flag("detect-local-mode", "detectLocalMode", str, "How pods' traffic is told from other traffic."),
    Flag("feature-gates", "featureGates", dict, "Without effect."),
    Flag(
        "healthz-bind-address",
        "healthzBindAddress",
        str,
        "Where to serve /healthz and /livez; empty: nowhere.",
    ),
    Flag("hostname-override", "hostnameOverride", str, "Name of this Node.", beside_file=True),
    Flag("iptables-localhost-nodeports", "iptables.localhostNodePorts", bool, "Without effect."),
    Flag("iptables-masquerade-bit", "iptables.masqueradeBit", int, "Without effect."),
    Flag("iptables-min-sync-period", "iptables.minSyncPeriod", str, "Without effect."),
    Flag("iptables-sync-period", "iptables.syncPeriod", str, "Half of how late a change may be taken over."),
    Flag("ipvs-exclude-cidrs", "ipvs.excludeCIDRs", list, "Without effect."),
    Flag("ipvs-min-sync-period", "ipvs.minSyncPeriod", str, "Without effect."),
    Flag("ipvs-scheduler", "ipvs.scheduler", str, "Without effect."),
    Flag("ipvs-strict-arp", "ipvs.strictARP", bool, "Without effect."),
    Flag("ipvs-sync-period", "ipvs.syncPeriod", str, "As --iptables-sync-period, for --proxy-mode ipvs."),
    Flag("ipvs-tcp-timeout", "ipvs.tcpTimeout", str, "Without effect."),
    Flag("ipvs-tcpfin-timeout", "ipvs.tcpFinTimeout", str, "Without effect."),
    Flag("ipvs-udp-timeout", "ipvs.udpTimeout", str, "Without effect."),
    Flag("kube-api-burst", "clientConnection.burst", int, "Without effect."),
    Flag("kube-api-content-type", "clientConnection.contentType", str, "Without effect."),
    Flag("kube-api-qps", "clientConnection.qps", float, "Without effect."),
    Flag(
        "kubeconfig", "clientConnection.kubeconfig", str, "Access to the API server; default: the pod's own."
    ),
    Flag("log-flush-frequency", "logging.flushFrequency", str, "Without effect.", beside_file=True),
    Flag("logging-format", "logging.format", str, "text or json.", beside_file=True),
    Flag("masquerade-all", "iptables.masqueradeAll", bool, "Masquerade everything that goes to cluster IPs."),
    Flag("metrics-bind-address", "metricsBindAddress", str, "Where to serve /metrics; empty: nowhere."),
    Flag(
        "nodeport-addresses",
        "nodePortAddresses",
        list,
        "Prefixes of addresses with node ports, or `primary`.",
    ),
    Flag("oom-score-adj", "oomScoreAdj", int, "Of this process, -1000 to 1000."),
    Flag(
        "pod-bridge-interface", "detectLocal.bridgeInterface", str, "For --detect-local-mode BridgeInterface."
    ),
    Flag(
        "pod-interface-name-prefix",
        "detectLocal.interfaceNamePrefix",
        str,
        "For --detect-local-mode InterfaceNamePrefix.",
    ),
    Flag("profiling", "enableProfiling", bool, "Without effect."),
    Flag("proxy-mode", "mode", str, "iptables, ipvs or nftables: which of their defaults hold."),
    Flag("show-hidden-metrics-for-version", "showHiddenMetricsForVersion", str, "Without effect."),
    Flag("v", "logging.verbosity", int, "Without effect.", beside_file=True),
)
# Deprecated: they change the port of an address that other flags give.
_PORTS = {"healthz-port": "healthzBindAddress", "metrics-port": "metricsBindAddress"}
_BY_NAME = {each.name: each for each in FLAGS}


@dataclass(frozen=True, slots=True)
class Given:
    """What a command line comes to."""

    config: KubeProxyConfiguration
    ignored: tuple[str, ...] = ()  # names of flags that the file silences


def add_flags(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a click command all flags; each arrives as a string, or None, under `flag_NAME`."""
    for flag in reversed(FLAGS):
        names = [f"-{flag.name}", f"--{flag.name}"] if len(flag.name) == 1 else [f"--{flag.name}"]
        extra: dict[str, Any] = {"is_flag": False, "flag_value": "true"} if flag.kind is bool else {}
        command = click.option(*names, parameter(flag.name), help=flag.help, metavar=_metavar(flag), **extra)(
            command
        )
    for name in _PORTS:
        command = click.option(f"--{name}", parameter(name), hidden=True)(command)
    return command


def parameter(name: str) -> str:
    return f"flag_{name.replace('-', '_')}"


def _metavar(flag: Flag) -> str:
    words = {bool: "[BOOL]", int: "NUMBER", float: "NUMBER", list: "LIST", dict: "NAME=BOOL,..."}
    return words.get(flag.kind, "TEXT")


def configuration(file: Path | None, words: Mapping[str, str]) -> Given:
    """The configuration of a file and of flags, by their names, checked.  Raises ConfigError with every fault."""
    if file is not None:
        config = read_config(file)
        beside = {
            name: text for name, text in words.items() if name in _BY_NAME and _BY_NAME[name].beside_file
        }
        ignored = tuple(f"--{name}" for name in words if name not in beside)
        if beside:
            config = _beside(config, _from_flags(beside)[0], beside)
        return Given(config, ignored)
    config, empty = _from_flags(words)
    for field in empty:
        config = with_fields(config, **{_snake(field): ""})
    return Given(config)


def _from_flags(words: Mapping[str, str]) -> tuple[KubeProxyConfiguration, list[str]]:
    """The configuration that flags alone give, and the addresses that they leave empty."""
    content: dict[str, Any] = {"apiVersion": schema.API_VERSION, "kind": schema.KIND}
    empty, problems = [], []
    for name, text in words.items():
        if name in _PORTS:
            if text.strip() == "0":
                empty.append(_PORTS[name])
            else:
                content.setdefault(_PORTS[name], f"{_anywhere(name)}:{text}")
            continue
        flag = _BY_NAME[name]
        if flag.path in _PORTS.values():
            content.pop(flag.path, None)
            if not text:
                empty.append(flag.path)
        try:
            _put(content, flag.path.split("."), _value(flag.kind, text))
        except ValueError as error:
            problems.append(Problem(f"{text!r} is not possible", field=f"--{name}", hint=str(error)))
    mode = content.get("mode")
    if mode == "nftables" and "iptables" in content:  # masquerade-all is one flag for all modes
        everything = content["iptables"].pop("masqueradeAll", None)
        if everything is not None:
            content["nftables"] = {"masqueradeAll": everything}
    faults: list[Fault] = []
    config = from_document(content, faults)
    faults += check(config) if not faults else []
    problems += [_problem(fault, words) for fault in faults]
    if problems:
        raise ConfigError(problems)
    return config, empty


def _anywhere(name: str) -> str:
    return "0.0.0.0" if name == "healthz-port" else "127.0.0.1"


def _beside(
    config: KubeProxyConfiguration, flags: KubeProxyConfiguration, names: Mapping[str, str]
) -> KubeProxyConfiguration:
    """The file's configuration, with the fields that these flags set."""
    for name in names:
        head, _, tail = _BY_NAME[name].path.partition(".")
        value = getattr(flags, _snake(head))
        if tail:
            below = {_snake(tail): getattr(value, _snake(tail))}
            value = with_fields(getattr(config, _snake(head)), **below)
        config = with_fields(config, **{_snake(head): value})
    return config


def _snake(name: str) -> str:
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name)


def _put(content: dict[str, Any], path: list[str], value: Any) -> None:
    for name in path[:-1]:
        content = content.setdefault(name, {})
    content[path[-1]] = value


def _value(kind: type, text: str) -> Any:
    """Raises ValueError with what would be right."""
    text = text.strip().removeprefix("=")  # `-v=4`, as klog is used to
    try:
        if kind in (int, float):
            return kind(text)
    except ValueError:
        raise ValueError("it is a number") from None
    if kind is bool:
        return _bool(text)
    if kind is list:
        return [each.strip() for each in text.split(",") if each.strip()]
    if kind is dict:
        pairs = [each.partition("=") for each in text.split(",") if each.strip()]
        return {name.strip(): _bool(value) for name, _, value in pairs}
    return text


def _bool(text: str) -> bool:
    """As strconv.ParseBool."""
    if text in ("1", "t", "T", "true", "TRUE", "True"):
        return True
    if text in ("0", "f", "F", "false", "FALSE", "False"):
        return False
    raise ValueError("it is true or false")


def _problem(fault: Fault, words: Mapping[str, str]) -> Problem:
    """Named by its flag, which is what was written."""
    where, message, hint = fault
    path = ".".join(str(each) for each in where if isinstance(each, str))
    flag = next((each for each in FLAGS if each.path == path and each.name in words), None)
    return Problem(message, field=f"--{flag.name}" if flag is not None else path, hint=hint)
