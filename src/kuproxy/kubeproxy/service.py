"""`ku kube-proxy`: the daemon with the API server as its source, and what kube-proxy besides does on a node."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import click
from msgspec.structs import replace

from kuproxy import __version__
from kuproxy.daemon.cache_choice import SHORTCUTS, SWITCH, Shortcuts, Switch
from kuproxy.daemon.log import make_log
from kuproxy.daemon.settings import DaemonSettings, load_settings
from kuproxy.errors import ConfigError, Problem
from kuproxy.kube.client import load_access
from kuproxy.kubeproxy.config import ProxyConfig, document_of, node_name_of, proxy_config
from kuproxy.kubeproxy.effects import without_effect
from kuproxy.kubeproxy.emit import to_yaml
from kuproxy.kubeproxy.flags import FLAGS, Given, add_flags, configuration, parameter
from kuproxy.main import run
from kuproxy.model.config import Config, ReplyPath

__all__ = ["kube_proxy"]


def _settings(path: Path | None) -> DaemonSettings:
    settings = load_settings(path)
    if settings.files:
        hint = "the services come from the API server; `ku daemon` serves files"
        raise ConfigError(Problem("is not possible for a kube-proxy", str(path), field="files", hint=hint))
    return settings


def _with_cache(settings: DaemonSettings, **said: str | None) -> DaemonSettings:
    """What the command line says of the flow cache goes before what the file says."""
    given = {name: word for name, word in said.items() if word is not None}
    return replace(settings, cache=replace(settings.cache, **given)) if given else settings


def _base(config: ProxyConfig, reply_path: str) -> Config:
    """What holds beside what comes from the API server, until `ku conf` says something else."""
    return Config(settings=dataclasses.replace(config.settings, reply_path=ReplyPath(reply_path)))


def _warn(given: Given, config: ProxyConfig, log: Any) -> None:
    for name in given.ignored:
        log.warning("ignored, because there is a --config file", flag=name)
    for path, reason in without_effect(given.config):
        log.warning("without effect", setting=path, text=reason)
    if not config.proxy.cluster_cidrs and config.raw.detect_local_mode == "ClusterCIDR":
        text = "detectLocalMode is ClusterCIDR and clusterCIDR is empty: no traffic counts as pods'"
        log.warning("settings", text=text)
    if config.proxy.node_port_addresses == ():
        text = "node ports are served at all addresses of this node; `primary` would restrict them"
        log.warning("settings", setting="nodePortAddresses", text=text)


def _lower_oom_score(value: int, log: Any) -> None:
    """So that it is not this process which the kernel ends first; without the privilege it stays as it is."""
    try:
        Path("/proc/self/oom_score_adj").write_text(str(value))
    except OSError as error:
        log.info("oomScoreAdj stays as it is", text=error.strerror)


@click.command(name="kube-proxy")
@click.option(
    "--config",
    "file",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="KubeProxyConfiguration v1alpha1.",
)
@click.option(
    "--master", metavar="URL", default="", help="The API server; goes before what --kubeconfig says."
)
@click.option(
    "--settings",
    "settings_path",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="What kube-proxy has no words for: the socket for `ku`, interfaces, ... (as `ku daemon --settings`).",
)
@click.option("--flow-cache", type=click.Choice(SWITCH), help="Whether the kernel carries established flows.")
@click.option(
    "--flow-cache-shortcuts",
    type=click.Choice(SHORTCUTS),
    help="Whether it sends their packets by shorter ways where that is safe.",
)
@click.option(
    "--reply-path",
    type=click.Choice([each.value for each in ReplyPath]),
    default=ReplyPath.STRICT.value,
    show_default=True,
    help="Where pods' replies may come in: by the interface through which this node sends to the pod, or by any.",
)
@click.option("--check", is_flag=True, help="Read everything, say what is wrong or without effect, and end.")
@click.option(
    "--write-config-to", metavar="FILE", type=click.Path(path_type=Path), help="Write it there, and end."
)
@click.option("--cleanup", is_flag=True, help="End at once: nothing is ever left behind.")
@click.option("--init-only", is_flag=True, help="End at once: nothing has to be prepared.")
@click.version_option(__version__, prog_name="kuproxy", message="%(prog)s %(version)s")
@add_flags
def kube_proxy(
    file: Path | None,
    master: str,
    settings_path: Path | None,
    flow_cache: Switch | None,
    flow_cache_shortcuts: Shortcuts | None,
    reply_path: str,
    check: bool,
    write_config_to: Path | None,
    cleanup: bool,
    init_only: bool,
    **words: str | None,
) -> None:
    """Be the kube-proxy of this node.

    Services, EndpointSlices, the own Node and ServiceCIDRs are followed at the API server. /healthz and /livez are
    served at port 10256, /metrics, /proxyMode, /statusz, /flagz and /configz at 127.0.0.1:10249, and each service's
    health-check node port.
    `ku show ...` and the other commands talk to it as to `ku daemon`. Needs root (or CAP_NET_ADMIN, CAP_NET_RAW,
    CAP_BPF and CAP_SYS_ADMIN) and Linux 6.6.

    \b
    ku kube-proxy --config /var/lib/kube-proxy/config.conf --hostname-override node-1
    ku kube-proxy --kubeconfig ~/.kube/config --cluster-cidr 10.244.0.0/16 --proxy-mode nftables
    ku kube-proxy --config config.conf --flow-cache on
    """
    names = [*(flag.name for flag in FLAGS), "healthz-port", "metrics-port"]
    found = {name: word for name in names if (word := words[parameter(name)]) is not None}
    given = configuration(file, found)
    if write_config_to is not None:
        try:
            write_config_to.write_text(to_yaml(document_of(given.config)))
        except OSError as error:
            raise ConfigError(Problem(f"cannot be written: {error.strerror}", str(write_config_to))) from None
        return
    if cleanup or init_only:
        return
    config = proxy_config(given.config)
    adjust = functools.partial(_with_cache, flow_cache=flow_cache, flow_cache_shortcuts=flow_cache_shortcuts)
    settings = adjust(_settings(settings_path))
    log = make_log("json" if given.config.logging.format == "json" else settings.log_format)
    _warn(given, config, log)
    node_name = node_name_of(given.config.hostname_override)
    load = functools.partial(load_access, given.config.client_connection.kubeconfig, server=master)
    server = load().cluster.server
    if check:
        click.echo(f"good: node {node_name}, API server {server}")
        return
    # Here, so that a fault is told before the compiler is loaded.
    from kuproxy.daemon.service import Daemon, exit_after
    from kuproxy.kubeproxy.agent import Agent
    from kuproxy.kubeproxy.zpages import flags_of

    flags = flags_of(found, config=str(file or ""), master=master, settings=str(settings_path or ""))
    agent = Agent(config, node_name, load, file, log, flags)

    def make() -> Daemon:
        daemon = Daemon(settings, settings_path, log, _base(config, reply_path))
        daemon.adjust = adjust
        daemon.companions.append(lambda: agent.run(daemon.controller, daemon.thread, daemon.node.steering))
        return daemon

    _lower_oom_score(given.config.oom_score_adj or 0, log)
    exit_after(make, log)


if __name__ == "__main__":
    run(kube_proxy, name="ku kube-proxy")
