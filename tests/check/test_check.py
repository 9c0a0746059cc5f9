"""Every seeded fault is named, with its place and what to do; what is in order is not named."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from kuproxy.check.finding import Finding, Paths, Severity
from kuproxy.check.run import check_files

GOOD = """\
ku conf masquerade 192.0.2.1 ip4-src-address 192.0.2.1 nat-mtu 1500
ku vip 90.0.0.0/24 protocol tcp port 80 target_port 8080 nat4
ku pod 90.0.0.0/24 10.0.0.1 10.0.0.2
ku vip 91.0.0.0/24 port 80 target_port 8081 nat4 masquerade
ku pod 91.0.0.0/24 10.0.0.1 10.0.0.2
"""

# What is added to GOOD, the rule that must name it, the line, a word of the message and one of the remedy.
FAULTS = [
    (
        "ku vip 92.0.0.1/32 new_len 2\n"
        "ku pod 92.0.0.1/32 10.0.1.1 10.0.1.2 10.0.1.3",
        "new-len-too-small", "no new flows", "new_len 1024",
    ),
    (
        "ku vip 92.0.0.1/32 new_len 16\n"
        "ku pod 92.0.0.1/32 10.0.1.1 10.0.1.2 10.0.1.3",
        "new-len-too-small", "uneven", "new_len 1024",
    ),
    (
        "ku vip 90.0.0.7/32 port 80 target_port 8089\n"
        "ku pod 90.0.0.7/32 10.0.1.1",
        "overlap", "/32 comes before /24", "differ",
    ),
    (
        "ku vip 92.0.0.1/32 port 80 target_port 8080\n"
        "ku pod 92.0.0.1/32 10.0.0.2",
        "shared-pod-port", "look alike", "of its own",
    ),
    (
        "ku vip 92.0.0.1/32 encap gre4\n"
        "ku pod 92.0.0.1/32 10.0.1.1",
        "mtu", "adds 24 bytes", "MTU of 1524",
    ),
    (
        "ku vip 92.0.0.1/32 encap gue4\n"
        "ku pod 92.0.0.1/32 10.0.1.1",
        "mtu", "adds 32 bytes", "MTU of 1532",
    ),
    (
        "ku vip 92.0.0.1/32 port 80",
        "no-pods", "dropped", "ku pod",
    ),
    (
        "ku vip 10.0.0.0/8 port 99\n"
        "ku pod 10.0.0.0/8 10.0.0.9",
        "pod-in-vip", "come back here", "before the pods",
    ),
    (
        "ku vip 9000::1/128 masquerade\n"
        "ku pod 9000::1/128 2001::1",
        "no-masquerade-address", "are dropped", "IPv6 address",
    ),
    (
        "ku vip 92.0.0.1/32 sessions 9000\n"
        "ku pod 92.0.0.1/32 10.0.1.1",
        "cap-above-table", "holds 4096", "buckets 4096",
    ),
    (
        "ku vip 92.0.0.1/32 hash source affinity 60\n"
        "ku pod 92.0.0.1/32 10.0.1.1",
        "affinity-twice", "one pod anyway", "leave out",
    ),
    (
        "ku pod 90.0.0.0/24 10.0.0.1 10.0.0.2 weight 0",
        "no-weight", "weigh 0", "weight",
    ),
]  # fmt: skip


def found_in(tmp_path: Path, text: str, paths: Paths | None = None) -> list[Finding]:
    path = tmp_path / "services.ku"
    path.write_text(text)
    return check_files([path], paths or Paths())


def test_what_is_in_order_is_not_named(tmp_path: Path) -> None:
    assert found_in(tmp_path, GOOD) == []


@pytest.mark.parametrize(("added", "rule", "message", "remedy"), FAULTS)
def test_a_seeded_fault_is_named(tmp_path: Path, added: str, rule: str, message: str, remedy: str) -> None:
    found = [each for each in found_in(tmp_path, GOOD + added + "\n") if each.rule == rule]
    assert len(found) == 1, found
    assert message in found[0].message and remedy in found[0].hint
    line = 2 if rule == "no-weight" else 2 if "also behind VIP 92" in found[0].message else 6
    assert (Path(found[0].file).name, found[0].line) == ("services.ku", line)


def test_all_faults_at_once_are_all_named(tmp_path: Path) -> None:
    """VIPs of their own prefixes, so that all stand beside each other."""
    text = GOOD
    for number, (added, *_rest) in enumerate(FAULTS):
        text += added.replace("92.0.0.1/32", f"92.0.0.{number + 1}/32") + "\n"
    rules = {each.rule for each in found_in(tmp_path, text)}
    assert rules >= {rule for _, rule, *_ in FAULTS}


def test_a_wider_way_to_the_pods_is_long_enough(tmp_path: Path) -> None:
    text = GOOD + FAULTS[4][0] + "\n"
    assert "mtu" in {each.rule for each in found_in(tmp_path, text, Paths(1500, 1523))}
    assert "mtu" not in {each.rule for each in found_in(tmp_path, text, Paths(1500, 1524))}


def test_the_worst_comes_first_and_refusals_are_findings(tmp_path: Path) -> None:
    order = [each.severity for each in found_in(tmp_path, GOOD + FAULTS[10][0] + "\n" + FAULTS[7][0] + "\n")]
    assert order == sorted(order, reverse=True) and Severity.ERROR in order
    refused = found_in(tmp_path, "ku vip 90.0.0.0/8 new_len 100\nku nonsense\n")
    assert [(each.rule, each.line) for each in refused] == [("refused", 1), ("refused", 2)]


MANIFEST = """\
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  clusterIPs: [10.96.0.10]
  ports: [{name: http, port: 80, targetPort: 8080, protocol: TCP}]
---
apiVersion: v1
kind: Service
metadata: {name: lonely, namespace: shop}
spec:
  clusterIPs: [10.96.0.11]
  ports: [{port: 80, protocol: TCP}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: www, port: 8080, protocol: TCP}]
endpoints:
- {addresses: [10.244.1.5], conditions: {ready: true}, hints: {forZones: [{name: z1}]}}
- {addresses: [10.244.2.5], conditions: {ready: true}}
"""


def test_services_that_do_not_find_their_endpoints(tmp_path: Path) -> None:
    path = tmp_path / "shop.yaml"
    path.write_text(MANIFEST)
    found = {(each.rule, each.subject): each for each in check_files([path], Paths())}
    wrong = found["port-not-in-slices", "Service shop/web"]
    assert "no slice has its port http/TCP; they have www/TCP" in wrong.message and wrong.line == 1
    assert found["no-slices", "Service shop/lonely"].line == 8
    assert "1 of 2 ready endpoints" in found["hints-in-part", "Service shop/web"].message


def test_the_command(tmp_path: Path) -> None:
    path = tmp_path / "services.ku"

    def check(text: str, *options: str) -> subprocess.CompletedProcess[str]:
        path.write_text(text)
        command = [sys.executable, "-m", "kuproxy", "check", *options, str(path)]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)

    clean = check(GOOD)
    assert (clean.returncode, clean.stdout) == (0, "0 errors, 0 warnings, 0 notes\n")
    faulty = check(GOOD + FAULTS[4][0] + "\n")
    assert faulty.returncode == 1
    assert faulty.stdout.startswith(f"{path}:6: warning: VIP 92.0.0.1/32: GRE adds 24 bytes")
    assert json.loads(check(GOOD + FAULTS[4][0] + "\n", "--json").stdout)[0]["rule"] == "mtu"
    note = check(GOOD + FAULTS[10][0] + "\n", "--quiet")
    assert (note.returncode, note.stdout) == (0, "0 errors, 0 warnings, 0 notes\n")
