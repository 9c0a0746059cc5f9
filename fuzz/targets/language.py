"""A script is carried out or refused as a whole, and each problem is one line that names where it is.

What is carried out can be kept, read back and shown. Parts are lines: sentences that mean something, reworded
and damaged.
"""

from __future__ import annotations

from random import Random

from fuzz.mutate import damage, reword
from fuzz.promises import told_well
from fuzz.target import Parts, Target
from kuproxy.daemon.schema import spec_of, vip_of
from kuproxy.engine.local import LocalEngine
from kuproxy.errors import ConfigError, KuError
from kuproxy.model.config import Show, ShowKind
from kuproxy.plane import Plane
from kuproxy.shell import candidates
from kuproxy.vppcli.apply import Desired
from kuproxy.vppcli.grammar import COMMANDS
from kuproxy.vppcli.show import render, to_json

LINES = (
    "ku conf ip4-src-address 192.0.2.1 ip6-src-address 2001:db8::1",
    "ku conf buckets 64 timeout 30",
    "ku conf timeout tcp-established 7440",
    "ku conf masquerade 192.0.2.1",
    "ku conf pod-ranges 10.0.0.0/8 2001::/16",
    "ku conf nat46-prefix 64:ff9b:1::/96 nat64-pool 192.0.0.0/29 nat64-ports 1024-65535 nat-mtu 1500 reply-path any",
    "ku vip 90.0.0.0/8 new_len 64",
    "ku vip 90.0.0.1/32 protocol tcp port 80 target_port 8080 node_port 30080 new_len 16",
    "ku vip 90.0.0.1/32 port 80 target_port 8080 del",
    "ku vip 90.1.0.0/24 encap gre4 new_len 16",
    "ku vip 9000::/16 encap ipip6 new_len 16",
    "ku vip 90.2.0.0/24 encap l3dsr dscp 7 new_len 16",
    "ku vip 90.3.0.0/24 encap gue4 gue_port 6080 new_len 16",
    "ku vip 9100::1/128 nat64 port 80 new_len 16",
    "ku vip 91.0.0.1/32 nat46 port 80 new_len 16 reject",
    "ku vip 90.4.0.1/32 port 80 masquerade affinity 10 sessions 100 new_len 16",
    "ku vip 90.5.0.1/32 source_ranges 40.0.0.0/24,10.0.0.1/32 hash source new_len 16",
    "ku pod 90.0.0.0/8 10.0.0.1 10.0.0.2 10.0.0.3",
    "ku pod 90.0.0.1/32 port 80 10.0.0.1:9090 weight 3",
    "ku pod 90.0.0.0/8 10.0.0.1 del flush",
    "ku pod 9100::1/128 10.0.0.1",
    "set ku nat4 interface eth0 in",
    "ku set interface eth1 nat6 in",
    "trace add 10",
    "show ku vips verbose",
    "ku show flows client 40.0.0.1 state udp",
    "show node counters",
    "kube-proxy flush flows",
    "comment { anything # at all",
)
WORDS = tuple(sorted({word for line in LINES for word in line.split()})) + tuple(
    sorted({part for row in COMMANDS for part in (*row.path, *row.usage.replace("|", " ").split())})
)
TOKENS = (b"\\", b"#", b" ", b"/", b":", b"\n", b"\x1c", b"\xe2\x80\xa8")
MOST_SLOTS = 1 << 14  # of new-flow tables: larger ones take seconds, and are other tests' affair
SHOWS = (*map(Show, ShowKind), Show(ShowKind.VIPS, verbose=True))


class Language(Target):
    def __init__(self) -> None:
        self._plane: Plane | None = None
        self.accepted = self.cases = 0

    def draw(self, rng: Random) -> Parts:
        lines: list[bytes] = []
        for _ in range(rng.randrange(1, 7)):
            line = rng.choice(LINES)
            kind = rng.randrange(24)
            if kind >= 19:
                line = reword(rng, line, WORDS)
            data = line.encode("utf-8", "surrogatepass")
            if kind >= 22:
                data = damage(rng, data, rng.choice((1, 2, 5)), TOKENS)
            lines.append(data)
        return tuple(lines)

    def check(self, parts: Parts) -> None:
        text = b"\n".join(parts).decode("utf-8", "replace")
        self.cases += 1
        desired = Desired()
        desired.run("ku vip 1.1.1.0/24 new_len 16\nku pod 1.1.1.0/24 10.9.9.9")
        before = desired.config()
        for line in text.splitlines()[-2:]:
            candidates(line)
        try:
            desired.run(text, "script.ku")
        except ConfigError as error:
            told_well(error, "script.ku", len(text.splitlines()))
            assert desired.config() == before, "a refused script has changed something"
            return
        self.accepted += 1
        self._apply(desired)

    def _apply(self, desired: Desired) -> None:
        config = desired.config()
        for vip in config.vips:
            assert vip_of(spec_of(vip)) == vip, f"{vip} does not come back from the state file"
        if sum(vip.new_len for vip in config.vips) > MOST_SLOTS:
            return
        if self._plane is None:
            self._plane = Plane(LocalEngine(4), decrement_ttl=True, any_node_address=True)
        try:
            self._plane.apply(config)
        except KuError as error:
            assert str(error)
            return
        report = self._plane.report()
        shown = {entry.vip.key for entry in report.vips if not entry.removed}
        assert shown == {vip.key for vip in config.vips}
        for show in (*SHOWS, *desired.shows):
            render(report, show)
            to_json(report)

    def summary(self) -> list[str]:
        return [f"{self.accepted:,} of {self.cases:,} scripts were carried out"]
