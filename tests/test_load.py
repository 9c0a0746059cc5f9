"""Several files are one configuration, and are refused with everything that is wrong in any of them."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from kuproxy.errors import ConfigError
from kuproxy.load import load_config

FIXTURES = Path(__file__).parent / "fixtures" / "kubernetes-1.36"

SERVICE = """\
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  clusterIP: 10.96.0.1
  ports: [{name: http, port: 80, nodePort: 30080}]
"""
SLICE = """\
kind: EndpointSlice
metadata: {name: web-1, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: http, port: 8080}]
endpoints: [{addresses: [10.0.0.1]}, {addresses: [10.0.0.2]}]
"""


@pytest.fixture
def write(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def write(**files: str | bytes) -> list[str]:
        names = []
        for stem, content in files.items():
            name = stem.replace("__", ".")
            Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
            names.append(name)
        return names

    return write


def refused(names: list[str]) -> list[str]:
    with pytest.raises(ConfigError) as error:
        load_config(names)
    return str(error.value).splitlines()


def test_scripts_and_manifests_together(write) -> None:
    config = load_config(
        write(a__ku="ku vip 90.0.0.0/8\nku conf timeout 5\n", b__ku="ku pod 90.0.0.0/8 10.0.0.9\nshow ku\n",
              c__yaml=SLICE, d__yml=SERVICE)
    )  # fmt: skip
    assert [f"{vip.owner} {vip.describe()}: {' '.join(map(str, vip.pods))}" for vip in config.vips] == [
        "ku 90.0.0.0/8 nat44 new_len 1024: 10.0.0.9",
        "shop/web:http 10.96.0.1/32 protocol tcp port 80 nat44 node_port 30080 new_len 1024: "
        "10.0.0.1:8080 10.0.0.2:8080",
    ]
    assert config.settings.timeout_s == 5
    assert len(config.shows) == 1
    assert config.sources == ("a.ku", "b.ku", "c.yaml", "d.yml")
    assert config.notes == ()


def test_problems_of_all_files_in_order(write) -> None:
    names = write(
        a__ku="\nku frob\n",
        b__yaml=SERVICE.replace("80,", "80000,"),
        c__json='{"kind": "Service", "kind": "Pod"}',
        d__txt="",
        e__yaml=b"kind: Pod\nmetadata: \xff\n",
        f__ku="ku vip 90.0.0.0/8 port x",
    )
    assert refused([*names, "g.ku"]) == [
        "a.ku:2: 'frob' is not known here; possible: conf, pod, set, show, test, trace or vip",
        "b.yaml:6: Service shop/web: spec.ports[0].port: 80000 is not a port; a port is 1 to 65535",
        "c.json:1: 'kind' is given twice; a key may stand once in an object",
        "d.txt: unknown kind of file '.txt'; it is one of .ku, .yaml, .yml, .json",
        "e.yaml:2: is not UTF-8",
        "f.ku:1: port: 'x' is not a number; write a decimal number",
        "g.ku: cannot be read: No such file or directory",
    ]


def test_an_object_given_twice(write) -> None:
    names = write(a__yaml=SERVICE, b__yaml=f"{SLICE}---\n{SERVICE}---\n{SLICE}")
    assert refused(names) == [
        "b.yaml:7: Service shop/web: is given twice, first at a.yaml:1",
        "b.yaml:14: EndpointSlice shop/web-1: is given twice, first at b.yaml:1",
    ]


def test_conflicts_between_files(write) -> None:
    names = write(
        a__ku="ku vip 10.96.0.1 protocol tcp port 80\nku vip 90.0.0.1 port 80 node_port 30080\n",
        b__yaml=SERVICE,
    )
    assert refused(names) == [
        "VIP 10.96.0.1/32 protocol tcp port 80 belongs to ku; shop/web:http asks for it too",
    ]
    names = write(a__ku="ku vip 90.0.0.1 port 80 node_port 30080\n", b__yaml=SERVICE)
    assert refused(names) == [
        "node port 30080 belongs to VIP 90.0.0.1/32 port 80 of ku; "
        "VIP 10.96.0.1/32 protocol tcp port 80 of shop/web:http asks for it too",
    ]


def test_conflicts_are_told_beside_other_problems(write) -> None:
    twice = SERVICE + "---\n" + SERVICE.replace("web", "api").replace(", nodePort: 30080", "")
    assert refused(write(a__ku="ku frob", b__yaml=twice)) == [
        "a.ku:1: 'frob' is not known here; possible: conf, pod, set, show, test, trace or vip",
        "VIP 10.96.0.1/32 protocol tcp port 80 belongs to shop/web:http; shop/api:http asks for it too",
    ]


def test_a_byte_order_mark_is_no_part_of_the_text(write) -> None:
    names = write(a__ku=b"\xef\xbb\xbfku vip 90.0.0.0/8", b__json=b'\xef\xbb\xbf{"kind": "Pod"}')
    assert len(load_config(names).vips) == 1


def test_notes_have_places(write) -> None:
    no_address = SERVICE.replace("clusterIP: 10.96.0.1", "externalTrafficPolicy: Local")
    local = SERVICE.replace("web", "api").replace("spec:", "spec:\n  externalTrafficPolicy: Local")
    text = f"kind: Pod\nmetadata: {{name: a}}\n---\n{no_address}"
    config = load_config(write(a__yaml=text, b__yaml=local))
    assert list(map(str, config.notes)) == [
        "a.yaml:1: Pod a: skipped: only Services, EndpointSlices, Nodes and ServiceCIDRs are read",
        "a.yaml:4: Service shop/web: skipped: it has no clusterIP; the API server would give it one",
        "b.yaml:1: Service shop/api: externalTrafficPolicy: Local is treated as Cluster: which node this is, "
        "no Node object says",
    ]  # fmt: skip


NODE = """kind: Node
metadata: {name: NAME}
spec: {podCIDRs: [10.1.0.0/16, "fd01::/64"]}
status: {addresses: [{type: InternalIP, address: 192.0.2.1}]}
"""


def test_a_node_among_the_manifests_says_where_we_are(write) -> None:
    node, other = NODE.replace("NAME", "here"), NODE.replace("NAME", "there")
    local = SERVICE.replace("spec:", "spec:\n  externalTrafficPolicy: Local\n  externalIPs: [203.0.113.1]")
    at_home = SLICE.replace("addresses: [10.0.0.1]", "addresses: [10.0.0.1], nodeName: here")
    names = write(a__yaml=f"{node}---\n{local}---\n{at_home}")
    config = load_config(names)
    outside = {str(vip.key.prefix): vip.outside_pods for vip in config.vips if vip.outside_pods is not None}
    assert {prefix: list(map(str, pods)) for prefix, pods in outside.items()} == {
        "203.0.113.1/32": ["10.0.0.1:8080"],
        "0.0.0.0/32": ["10.0.0.1:8080"],
    }
    assert list(map(str, config.settings.pod_ranges)) == ["10.1.0.0/16", "fd01::/64"]
    assert list(map(str, config.node_addresses)) == ["192.0.2.1"]
    assert not config.notes

    said = load_config([*names, *write(z__ku="ku conf pod-ranges 10.0.0.0/8")])
    assert list(map(str, said.settings.pod_ranges)) == ["10.0.0.0/8"]
    assert said.vips == config.vips

    two = load_config(write(b__yaml=f"{node}---\n{other}---\n{local}---\n{at_home}"))
    assert all(vip.outside_pods is None for vip in two.vips)
    assert "of 2 nodes none is called" in str(two.notes[0])
    this = socket.gethostname().lower()
    mine = load_config(write(c__yaml=f"{node}---\n{other.replace('there', this)}---\n{local}---\n{at_home}"))
    assert [vip.outside_pods for vip in mine.vips if vip.node_port] == [()]


def test_the_fixtures_load() -> None:
    config = load_config([FIXTURES / "lists/services.json", FIXTURES / "lists/endpointslices.json"])
    assert len(config.vips) == 75
    many = next(vip for vip in config.vips if vip.owner == "shop/many:http")
    assert (len(many.pods), many.new_len) == (6, 1024)
    assert sum("skipped" in str(note) for note in config.notes) == 7
    manifests = load_config(sorted((FIXTURES / "manifests").iterdir()))
    assert {vip.owner.partition(":")[0] for vip in manifests.vips} == {
        "shop/frontend", "shop/dns", "shop/many", "shop/no-selector", "shop/states", "shop/hinted",
        "shop/odd-slices", "shop/all-terminating", "shop/extra-range",
    }  # fmt: skip


def test_starting_loads_neither_yaml_nor_arrays() -> None:
    code = (
        "import sys, kuproxy.load, kuproxy.vppcli.show; print({'yaml', 'numpy', 'numba'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "set()\n"
