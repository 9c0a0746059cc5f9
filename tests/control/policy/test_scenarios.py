"""Manifests in, the table of VIPs out, and nothing left when they are gone: one pair of files in `scenarios` each.

A `.txt` file is what the table must be, a line for each VIP; it is written by hand or, when it is missing, compared
with nothing and the test fails with what it should hold.
"""

from __future__ import annotations

from ipaddress import ip_network
from pathlib import Path

import pytest
import yaml

from kuproxy.codes import Origin
from kuproxy.control.compile import Compiler
from kuproxy.control.policy import vips_of
from kuproxy.control.store import Store
from kuproxy.engine.local import LocalEngine
from kuproxy.kube.convert import Converted, convert_document
from kuproxy.kube.node import convert_node, convert_service_cidr
from kuproxy.model.node import NodeView, ProxySettings
from kuproxy.model.vip import Pod, Vip, address_text

SCENARIOS = sorted((Path(__file__).parent / "scenarios").glob("*.yaml"))


def vips_in(path: Path) -> list[Vip]:
    documents = list(yaml.safe_load_all(path.read_text()))
    problems: list = []
    objects = Converted()
    ranges: tuple = ()
    node = None
    for document in documents:
        if document["kind"] == "Node":
            node = convert_node(document, problems)
        elif document["kind"] == "ServiceCIDR":
            ranges += convert_service_cidr(document, problems) or ()
        else:
            convert_document(document, objects)
    assert not problems
    assert not objects.problems
    assert node is not None
    settings = ProxySettings(
        cluster_cidrs=(ip_network("10.0.0.0/12"), ip_network("fd01::/16")), service_cidrs=ranges
    )
    services, slices = [s for s, _ in objects.services], [s for s, _ in objects.slices]
    return vips_of(services, slices, NodeView(node, settings))


def line(vip: Vip) -> str:
    def listed(pods: tuple[Pod, ...]) -> str:
        return " ".join(address_text(pod.address, vip.pod_port(pod)) for pod in pods) or "nobody"

    parts = [f"{vip.key} ({vip.owner}): {listed(vip.pods)}"]
    if vip.outside_pods is not None:
        parts.append(f"outside {listed(vip.outside_pods)}")
    if vip.node_port:
        parts.append(f"node_port {vip.node_port}")
    origins = ("everybody",) if vip.masquerade else vip.origins_masqueraded
    if origins:
        parts.append("masquerade " + " ".join(origins))
    if vip.affinity_s:
        parts.append(f"affinity {vip.affinity_s:g}")
    if vip.source_ranges:
        parts.append("from " + " ".join(map(str, vip.source_ranges)))
    if not vip.pods_for(Origin.OUTSIDE):
        parts.append("reject" if vip.reject else "drop")
    return "; ".join(parts)


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: path.stem)
def test_scenario(path) -> None:
    vips = vips_in(path)
    expected = path.with_suffix(".txt")
    assert "\n".join(map(line, vips)) + "\n" == (expected.read_text() if expected.exists() else "")

    store = Store()
    compiler = Compiler(LocalEngine(0).tables, decrement_ttl=False, any_node_address=False)
    empty = compiler.in_use()
    compiler.apply(store.replace("scenario", vips))
    assert compiler.in_use()["vips"] == len(vips)
    assert not store.replace("scenario", vips_in(path)), "the same manifests again change nothing"
    compiler.apply(store.replace("scenario", []))
    for _ in range(3):
        compiler.collect(compiler.generation, lambda index: 0)
    assert compiler.in_use() == empty
