"""A settings file, kuproxy's or kube-proxy's, is taken, or refused with one line for each problem.

Parts: which of the two, then the file's lines.
"""

from __future__ import annotations

from pathlib import Path
from random import Random

from fuzz.mutate import NUMBERS, STRINGS, damage, damage_tree
from fuzz.promises import told_well
from fuzz.target import FileTarget, Parts
from kuproxy.announce.settings import load_announce
from kuproxy.daemon.settings import load_settings
from kuproxy.errors import ConfigError
from kuproxy.kubeproxy.config import document_of, from_document, proxy_config, read_config

TOML = """\
files = ["services.ku"]
state_directory = "/var/lib/kuproxy"
interfaces = ["eth0"]
workers = 2
log_format = "json"
worker_filter = true

[api]
socket = "/run/kuproxy/ku.sock"
group = ""
mode = "0660"

[tcp]
address = "127.0.0.1"
port = 9155
token_file = "token"

[metrics]
address = "::1"
port = 9153

[web]
names = ["ku.example"]

[driver]
kind = "af_packet"

[cache]
flow_cache = "auto"
flow_cache_entries = 65536

[announce]
ranges = ["192.0.2.0/24", "2001:db8::/64"]
drain_s = 2.5

[announce.bgp]
asn = 64512
router_id = "192.0.2.9"
next_hop4 = "192.0.2.9"
hold_s = 9
communities = ["64512:1"]

[[announce.bgp.neighbors]]
address = "192.0.2.1"
asn = 64513
multihop = 2

[announce.layer2]
interface = "eth0"
"""
YAML = """\
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
bindAddress: 0.0.0.0
clusterCIDR: 10.0.0.0/8,fd00::/48
configSyncPeriod: 15m0s
conntrack:
  maxPerCore: 32768
  min: 131072
  tcpEstablishedTimeout: 24h0m0s
  udpStreamTimeout: 30s
detectLocalMode: ClusterCIDR
detectLocal:
  bridgeInterface: cni0
healthzBindAddress: 0.0.0.0:10256
metricsBindAddress: 127.0.0.1:10249
iptables:
  masqueradeAll: true
  syncPeriod: 30s
mode: nftables
nftables:
  minSyncPeriod: 1s
nodePortAddresses: [192.0.2.0/24, "2001:db8::/64"]
"""
TOML_TOKENS = (
    b"[",
    b"]",
    b"[[",
    b"=",
    b'"',
    b"'''",
    b'"""',
    b"\n",
    b"\\",
    b"{",
    b"}",
    b".",
    b"#",
    b"inf",
    b"nan",
    b"-1",
    b"1979-05-27",
    b"[" * 3000,
    b"a.b.c = 1\n",
    b"9" * 5000,
    b"\xff",
    b"\0",
    b"\\u",
    b"true",
    b"0x",
    b"1_0",
    b"[announce]\n",
    b"[tcp]\n",
)


class Settings(FileTarget):
    keeps = 1

    def __init__(self) -> None:
        super().__init__()
        self.accepted = self.cases = 0

    def draw(self, rng: Random) -> Parts:
        if rng.randrange(2):
            return (b"toml", *self._toml(rng).split(b"\n"))
        import yaml

        if rng.randrange(2):
            tree = damage_tree(rng, yaml.safe_load(YAML), rng.choice((1, 1, 2, 4)))
            data = yaml.safe_dump(tree).encode()
        else:
            data = damage(rng, YAML.encode(), rng.choice((1, 2, 4)))
        return (b"yaml", *data.split(b"\n"))

    @staticmethod
    def _toml(rng: Random) -> bytes:
        lines = TOML.split("\n")
        for _ in range(rng.choice((1, 1, 2, 4))):
            at = rng.randrange(len(lines))
            name, separator, _ = lines[at].partition(" = ")
            kind = rng.randrange(6)
            if kind <= 2 and separator:
                value = rng.choice(
                    (
                        repr(rng.choice(NUMBERS)),
                        _quoted(rng.choice(STRINGS)),
                        "true",
                        "[]",
                        "[1]",
                        "{}",
                        "0.5",
                    )
                )
                lines[at] = f"{name} = {value}"
            elif kind == 3:
                del lines[at]
            elif kind == 4:
                lines.insert(rng.randrange(len(lines)), lines[at])
            else:
                return damage(
                    rng, "\n".join(lines).encode("utf-8", "surrogatepass"), rng.choice((1, 2)), TOML_TOKENS
                )
        return "\n".join(lines).encode("utf-8", "surrogatepass")

    def check(self, parts: Parts) -> None:
        self.cases += 1
        kind, data = parts[0], b"\n".join(parts[1:])
        path = self.directory / ("kuproxy.toml" if kind == b"toml" else "config.yaml")
        path.write_bytes(data)
        if kind != b"toml":
            self._kube_proxy(path)
            return
        try:
            load_settings(path)
            self.accepted += 1
        except ConfigError as error:
            told_well(error, str(path), data.count(b"\n") + 1)
        try:
            load_announce(path)
        except ConfigError as error:
            told_well(error, str(path))

    def _kube_proxy(self, path: Path) -> None:
        try:
            config = read_config(path)
        except ConfigError as error:
            told_well(error, str(path))
            return
        self.accepted += 1
        faults: list[object] = []
        again = from_document(document_of(config), faults)  # type: ignore[arg-type]
        assert not faults, f"what is written is not read: {faults}"
        assert again == config, "what is written means something else"
        try:
            proxy_config(config, cores=2)
        except ConfigError as error:
            told_well(error)

    def summary(self) -> list[str]:
        return [f"{self.accepted:,} of {self.cases:,} files were taken"]


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(each if each.isprintable() else f"\\u{ord(each):04x}" for each in escaped) + '"'
