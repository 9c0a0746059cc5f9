"""KubeProxyConfiguration v1alpha1: upstream's defaults to the byte, and every fault with its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from kuproxy.codes import FlowState
from kuproxy.errors import ConfigError
from kuproxy.kubeproxy.config import Endpoint, document_of, node_name_of, proxy_config, read_config
from kuproxy.kubeproxy.duration import Duration
from kuproxy.kubeproxy.effects import NO_EFFECT, without_effect
from kuproxy.kubeproxy.emit import to_yaml
from kuproxy.kubeproxy.flags import FLAGS, configuration
from kuproxy.model.node import DetectLocalMode

ROOT = Path(__file__).parents[2]
FIXTURES = ROOT / "tests/fixtures/kubernetes-1.36/kube-proxy"
DEFAULTS = {
    "iptables": FIXTURES / "kube-proxy-config-defaults.yaml",
    "nftables": FIXTURES / "kube-proxy-config-defaults.nftables.yaml",
}
HEAD = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n"


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "config.conf"
    path.write_text(HEAD + text)
    return path


@pytest.mark.parametrize("mode", DEFAULTS)
def test_the_file_that_kube_proxy_writes_is_read_and_written_to_the_byte(mode: str) -> None:
    config = read_config(DEFAULTS[mode])
    assert to_yaml(document_of(config)) == DEFAULTS[mode].read_text()
    assert list(without_effect(config)) == []


@pytest.mark.parametrize("mode", DEFAULTS)
def test_what_is_not_said_has_upstreams_default(tmp_path: Path, mode: str) -> None:
    config = read_config(written(tmp_path, f"mode: {mode}\n"))
    assert to_yaml(document_of(config)) == DEFAULTS[mode].read_text()


def test_every_fault_is_told_with_line_field_and_what_would_be_right(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        """\
bindaddress: 1.2.3.4
conntrack:
  maxPerCore: many
  tcpEstablishedTimeout: 5
nodePortAddresses: 10.0.0.0/8
iptables: 5
oomScoreAdj: 1.5
enableProfiling: "yes"
featureGates: {a: 3}
udpIdleTimeout: 3s
""",
    )
    with pytest.raises(ConfigError) as caught:
        read_config(path)
    assert str(caught.value).replace(f"{path}:", "").splitlines() == [
        "3: bindaddress: unknown field; did you mean bindAddress?",
        "5: conntrack.maxPerCore: 'many' is not possible; it is a whole number",
        "6: conntrack.tcpEstablishedTimeout: 5 is not a duration; "
        "a duration is a string as 30s, 1h15m or 250ms",
        "7: nodePortAddresses: '10.0.0.0/8' is not possible; it is a list",
        "8: iptables: 5 is not possible; it is a map",
        "9: oomScoreAdj: 1.5 is not possible; it is a whole number",
        "10: enableProfiling: 'yes' is not possible; it is true or false",
        "11: featureGates[...]: expected `bool`, got `int`",
        "12: udpIdleTimeout: unknown field; it went with the userspace mode; take it out",
    ]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("mode: userspace", "3: mode: 'userspace' is not possible; it is one of iptables, ipvs, nftables"),
        ("clusterCIDR: 10.0.0.0/8,11.0.0.0/8", "3: clusterCIDR: two prefixes of one family"),
        ("clusterCIDR: 10.0.0.0", "3: clusterCIDR: '10.0.0.0' is not a prefix"),
        ("nodePortAddresses:\n- 10.0.0.0/8\n- 1.2.3.4", "5: nodePortAddresses.1: '1.2.3.4' is not a prefix"),
        ("nodePortAddresses: [primary, 10.0.0.0/8]", "3: nodePortAddresses: `primary` stands beside others"),
        ("healthzBindAddress: 1.2.3.4:99999", "3: healthzBindAddress: '1.2.3.4:99999' is not an address"),
        ("metricsBindAddress: localhost:80", "3: metricsBindAddress: 'localhost:80' is not an address"),
        ("bindAddress: here", "3: bindAddress: 'here' is not an IP address"),
        ("detectLocalMode: BridgeInterface", "detectLocal.bridgeInterface: is empty"),
        (
            "detectLocalMode: InterfaceNamePrefix\ndetectLocal: {interfaceNamePrefix: interfaces-of-pods}",
            "detectLocal.interfaceNamePrefix: 'interfaces-of-pods' is not an interface name",
        ),
        ("detectLocalMode: bridge", "3: detectLocalMode: 'bridge' is not possible; it is one of ClusterCIDR"),
        ("oomScoreAdj: -2000", "3: oomScoreAdj: -2000 is out of range; it is -1000 to 1000"),
        ("iptables: {masqueradeBit: 32}", "3: iptables.masqueradeBit: 32 is out of range; it is 0 to 31"),
        ("iptables: {syncPeriod: 1s, minSyncPeriod: 2s}", "3: iptables.syncPeriod: 1s is not possible"),
        ("iptables: {syncPeriod: -1s}", "3: iptables.syncPeriod: -1s is not possible; it is longer than 0s"),
        ("conntrack: {udpTimeout: -3s}", "3: conntrack.udpTimeout: -3s is not possible"),
        ("configSyncPeriod: -1s", "3: configSyncPeriod: -1s is not possible"),
        ("mode: ipvs\nipvs: {scheduler: best}", "4: ipvs.scheduler: 'best' is not possible"),
        ("portRange: ports", "3: portRange: 'ports' is not a range of ports; as 300-2000"),
        ("logging: {format: xml}", "3: logging.format: 'xml' is not possible; it is one of text, json"),
        ("mode: a\nmode: b", "'mode' is given twice"),
        ("mode: [", "not YAML"),
    ],
)
def test_values_that_upstream_refuses(tmp_path: Path, text: str, told: str) -> None:
    path = written(tmp_path, text + "\n")
    with pytest.raises(ConfigError) as caught:
        read_config(path)
    assert str(caught.value).startswith(f"{path}:")
    assert told in str(caught.value)


def test_a_file_of_another_kind(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("apiVersion: kubeproxy.config.k8s.io/v1alpha2\nfoo: 1\n")
    with pytest.raises(ConfigError) as caught:
        read_config(path)
    assert str(caught.value).splitlines() == [
        f"{path}:1: apiVersion: is 'kubeproxy.config.k8s.io/v1alpha2'; it is kubeproxy.config.k8s.io/v1alpha1",
        f"{path}:1: kind: is absent; it is KubeProxyConfiguration",
    ]
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        read_config(tmp_path / "nothing")


def test_what_the_proxy_takes_from_it(tmp_path: Path) -> None:
    text = """\
bindAddress: "fd00::7"
clusterCIDR: 10.244.0.1/16,fd00:10:244::/56
conntrack: {maxPerCore: 10000, min: 50000, tcpEstablishedTimeout: 2h, udpStreamTimeout: 1m30s}
detectLocalMode: NodeCIDR
mode: nftables
nftables: {masqueradeAll: true, syncPeriod: 10s}
nodePortAddresses: [192.168.0.0/16]
healthzBindAddress: "::"
"""
    config = proxy_config(read_config(written(tmp_path, text)), cores=8)
    assert config.healthz == Endpoint("::", 10256)
    assert config.metrics == Endpoint("::1", 10249), "the family of bindAddress"
    assert str(config.node_ip) == "fd00::7"
    assert config.healthy_within_s == 20
    proxy = config.proxy
    assert proxy.detect_local_mode is DetectLocalMode.NODE_CIDR
    assert list(map(str, proxy.cluster_cidrs)) == ["10.244.0.0/16", "fd00:10:244::/56"]
    assert proxy.masquerade_all
    assert list(map(str, proxy.node_port_addresses or ())) == ["192.168.0.0/16"]
    assert config.settings.buckets == 65536, "80,000 flows, two to a bucket of four"
    assert dict(config.settings.timeouts_s) == {FlowState.TCP_ESTABLISHED: 7200.0, FlowState.UDP: 90.0}


def test_node_ports_are_where_each_mode_has_them_by_default() -> None:
    assert proxy_config(read_config(DEFAULTS["iptables"])).proxy.node_port_addresses == ()
    assert proxy_config(read_config(DEFAULTS["nftables"])).proxy.node_port_addresses is None


def test_zero_leaves_our_own_sizes_and_times(tmp_path: Path) -> None:
    text = "conntrack: {maxPerCore: 0, tcpEstablishedTimeout: 0s}\n"
    settings = proxy_config(read_config(written(tmp_path, text))).settings
    assert settings.buckets == 65536
    assert settings.timeouts_s == ()


def test_settings_without_effect_are_named_with_the_reason(tmp_path: Path) -> None:
    text = (
        "mode: ipvs\nipvs: {strictARP: true, scheduler: lc}\nfeatureGates: {A: true}\nconfigSyncPeriod: 1m\n"
    )
    told = dict(without_effect(read_config(written(tmp_path, text))))
    assert set(told) == {"ipvs", "featureGates", "configSyncPeriod"}
    document = (ROOT / "docs/kubernetes.md").read_text()
    for path, reason in NO_EFFECT.items():
        assert f"| `{path}` | {reason} |" in document


def test_durations_are_gos() -> None:
    for text in ("0s", "15m0s", "24h0m0s", "1h15m30.918273645s", "250ms", "1.5µs", "42ns", "-2s", "-1m0.5s"):
        assert str(Duration.parse(text)) == text
    assert Duration.parse(".5h") == Duration.parse("30m") == Duration.of(1800)
    assert Duration.parse("0") == 0
    for wrong in ("", "5", "1 s", "s", "1d", "1h-3m", 5, None, True, "300000000h"):
        with pytest.raises(ValueError, match="a duration is a string as"):
            Duration.parse(wrong)


# ----------------------------------------------------------------------------------------------------- flags


def test_flags_alone_make_the_configuration() -> None:
    words = {
        "proxy-mode": "nftables", "masquerade-all": "true", "cluster-cidr": "10.0.0.0/8", "v": "=4",
        "nodeport-addresses": "10.0.0.0/8,fd00::/8", "healthz-port": "0", "metrics-port": "9999",
        "hostname-override": "Node-7", "feature-gates": "A=true,B=false",
    }  # fmt: skip
    given = configuration(None, words)
    assert given.ignored == ()
    config = proxy_config(given.config)
    assert config.proxy.masquerade_all
    assert (config.healthz, config.metrics) == (None, Endpoint("127.0.0.1", 9999))
    assert given.config.node_port_addresses == ["10.0.0.0/8", "fd00::/8"]
    assert given.config.logging.verbosity == 4
    assert given.config.feature_gates == {"A": True, "B": False}
    assert node_name_of(given.config.hostname_override) == "node-7"
    assert proxy_config(configuration(None, {"metrics-bind-address": ""}).config).metrics is None
    address = configuration(None, {"metrics-bind-address": "0.0.0.0"}).config.metrics_bind_address
    assert address == "0.0.0.0:10249"


def test_a_file_silences_all_flags_but_a_few() -> None:
    words = {"v": "4", "hostname-override": "n1", "cluster-cidr": "10.0.0.0/8", "kubeconfig": "/x"}
    given = configuration(DEFAULTS["iptables"], words)
    assert given.ignored == ("--cluster-cidr", "--kubeconfig")
    assert given.config.logging.verbosity == 4
    assert given.config.hostname_override == "n1"
    assert given.config.cluster_cidr == ""


def test_a_wrong_flag_is_named_as_it_was_written() -> None:
    words = {"v": "x", "profiling": "maybe", "conntrack-udp-timeout": "5"}
    with pytest.raises(ConfigError) as caught:
        configuration(None, words)
    assert [str(each).partition(";")[0] for each in caught.value.problems] == [
        "--v: 'x' is not possible",
        "--profiling: 'maybe' is not possible",
        "--conntrack-udp-timeout: '5' is not a duration",
    ]
    with pytest.raises(ConfigError, match="--oom-score-adj: 5000 is out of range"):
        configuration(None, {"oom-score-adj": "5000"})


def test_every_flag_stands_for_a_field() -> None:
    """A value that each takes, and it arrives where its path says."""
    samples = {
        bool: "true", int: "7", float: "7", list: "10.0.0.0/8", dict: "A=true",
        "bindAddress": "10.0.0.1", "clusterCIDR": "10.0.0.0/8", "detectLocalMode": "NodeCIDR",
        "healthzBindAddress": "10.0.0.1:1", "metricsBindAddress": "10.0.0.1:1", "logging.format": "json",
        "mode": "ipvs", "ipvs.scheduler": "rr",
    }  # fmt: skip
    usual = document_of(configuration(None, {}).config)
    for flag in FLAGS:
        text = samples.get(flag.path, samples.get(flag.kind, "45s"))
        if flag.path == "iptables.localhostNodePorts":
            text = "false"
        if flag.path in ("iptables.minSyncPeriod", "ipvs.minSyncPeriod"):
            text = "7s"
        document = document_of(configuration(None, {flag.name: text}).config)
        head, _, tail = flag.path.partition(".")
        found, before = document.get(head), usual.get(head)
        if tail:
            found, before = found[tail], before[tail]
        assert found != before, flag.name
