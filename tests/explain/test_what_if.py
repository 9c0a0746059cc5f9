"""What would be is what is, once the change has been made; and asking changes nothing."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address
from random import Random

import pytest

import packets
from kuproxy.drivers.memory import MemoryDriver
from kuproxy.engine.local import LocalEngine
from kuproxy.engine.packets import PacketIn
from kuproxy.errors import ConfigError
from kuproxy.explain.explain import explain
from kuproxy.explain.services import finder
from kuproxy.explain.whatif import WhatIf, explain_both, parse_pod
from kuproxy.load import load_config
from kuproxy.model.vip import Pod, Vip, VipKey, parse_prefix, vip_type
from kuproxy.plane import Plane

NOW = 100


def make_plane(vips: list[Vip]) -> Plane:
    plane = Plane(LocalEngine(4), decrement_ttl=True, any_node_address=False)
    plane.update("test", vips)
    return plane


def make_vip(rng: Random, last: int) -> Vip:
    prefix = parse_prefix(f"90.0.0.{last}")
    pods = tuple(
        Pod(ip_address(f"10.0.0.{each}"), weight=rng.choice([1, 1, 1, 3]))
        for each in rng.sample(range(1, 20), 6)
    )
    outside = pods[:3] if rng.random() < 0.3 else None
    return Vip(
        VipKey(prefix, port=80), vip_type(prefix), target_port=8080, new_len=rng.choice([16, 128, 1024]),
        pods=pods, outside_pods=outside, affinity_s=rng.choice([0.0, 0.0, 60.0]),
    )  # fmt: skip


def send(plane: Plane, frames: list[bytes]) -> None:
    driver = MemoryDriver(frames)
    while driver.receive(driver.frame):
        plane.engine.process(driver.frame, NOW)  # type: ignore[attr-defined]
        driver.transmit(driver.frame)


@pytest.mark.parametrize("seed", range(25))
def test_the_change_does_what_was_said(seed: int) -> None:
    rng = Random(seed)
    vips = [make_vip(rng, last) for last in range(1, 4)]
    plane = make_plane(vips)
    frames = [
        packets.frame(packets.tcp(f"40.0.0.{rng.randrange(1, 9)}", f"90.0.0.{rng.randrange(1, 4)}", port, 80))
        for port in range(1000, 1040)
    ]
    send(plane, frames[:20])  # half of them are known
    vip = rng.choice(vips)
    gone, new = rng.choice(vip.pods), Pod(ip_address("10.0.0.99"), weight=rng.choice([1, 2]))
    what_if, changed = rng.choice(
        [
            (
                WhatIf(without_pods=(str(gone.address),)),
                replace(
                    vip,
                    pods=tuple(pod for pod in vip.pods if pod != gone),
                    outside_pods=None
                    if vip.outside_pods is None
                    else tuple(pod for pod in vip.outside_pods if pod != gone),
                ),
            ),
            (
                WhatIf(with_pods=(f"10.0.0.99*{new.weight}",)),
                replace(
                    vip,
                    pods=(*vip.pods, new),
                    outside_pods=None if vip.outside_pods is None else (*vip.outside_pods, new),
                ),
            ),
            (WhatIf(new_len=256), replace(vip, new_len=256)),
        ]
    )
    mine = [frame for frame in frames if frame[33] == vip.key.prefix.network_address.packed[3]]
    told = [explain_both(plane, PacketIn(each), NOW, what_if, services=finder((), None)) for each in mine]
    again = [explain_both(plane, PacketIn(each), NOW, what_if, services=finder((), None)) for each in mine]
    assert told == again
    plane.update("test", [changed])
    for frame, before in zip(mine, told, strict=True):
        now = explain(plane, PacketIn(frame), NOW)
        assert before.what_if is not None
        said = before.what_if
        assert (said.outcome, said.reason, said.pod, said.sent) == (
            now.outcome,
            now.reason,
            now.pod,
            now.sent,
        )
        assert said.ring == now.ring
        assert said.endpoints == now.endpoints
        assert now.ring is not None and before.ring is not None
        if now.ring.compared:
            assert now.ring.before == before.ring.owner
        removed = what_if.without_pods and before.pod == f"{gone.address}:8080"
        if before.flow is not None and before.flow.known and not removed:
            # A SYN begins a flow of a removed pod anew; all others stay.
            assert said.pod == before.pod, "a known flow stays"
        elif said.pod != before.pod:
            assert any("instead of" in line for line in said.differences)


MANIFEST = """\
apiVersion: v1
kind: Node
metadata: {name: a, labels: {topology.kubernetes.io/zone: z1}}
spec: {podCIDRs: [10.244.1.0/24]}
status: {addresses: [{type: InternalIP, address: 192.168.0.1}]}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  clusterIP: 10.96.0.10
  clusterIPs: [10.96.0.10]
  ports: [{name: http, port: 80, targetPort: 8080, protocol: TCP}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: http, port: 8080, protocol: TCP}]
endpoints:
- {addresses: [10.244.1.5], nodeName: a, conditions: {ready: true}}
- {addresses: [10.244.2.5], nodeName: b, conditions: {ready: true}}
- {addresses: [10.244.2.6], nodeName: b, conditions: {ready: false, serving: true, terminating: true}}
- {addresses: [10.244.2.7], nodeName: b, conditions: {ready: false}}
"""


def test_another_policy_and_the_rule_of_each_endpoint(tmp_path) -> None:
    path = tmp_path / "web.yaml"
    path.write_text(MANIFEST)
    config = load_config([path])
    plane = Plane(LocalEngine(4), decrement_ttl=False, any_node_address=False)
    plane.apply(config)
    frame = packets.frame(packets.tcp("10.244.1.9", "10.96.0.10", 40000, 80))
    services = finder(config.services, config.view)
    told = explain_both(plane, PacketIn(frame), NOW, WhatIf(policy="internal=Local"), services=services)
    assert told.owner == "shop/web:http" and "seen from node a in zone z1" in str(told.service)
    rules = {each.pod: (each.serves, each.rule) for each in told.endpoints}
    assert rules["10.244.1.5:8080"] == (True, "ready, policy Cluster")
    assert rules["10.244.2.6:8080"] == (False, "terminating, and others are ready")
    assert rules["10.244.2.7:8080"] == (False, "not ready")
    assert told.what_if is not None and told.what_if.pod == "10.244.1.5:8080"
    rules = {each.pod: (each.serves, each.rule) for each in told.what_if.endpoints}
    assert rules["10.244.2.5:8080"] == (False, "policy Local, and it is on node b, not on a")
    assert [serves for serves, _ in rules.values()] == [True, False, False, False]


@pytest.mark.parametrize(
    ("what_if", "message"),
    [
        (WhatIf(without_pods=("10.0.0.77",)), "has no pod 10.0.0.77"),
        (WhatIf(with_pods=("2001::1",)), "is IPv6"),
        (WhatIf(new_len=100), "100 is not a size"),
        (WhatIf(policy="Local"), "is no Service's"),
        (WhatIf(with_pods=("nonsense",)), "--with-pod"),
    ],
)
def test_a_change_that_makes_no_sense_is_refused(what_if: WhatIf, message: str) -> None:
    plane = make_plane([make_vip(Random(1), 1)])
    frame = packets.frame(packets.tcp("40.0.0.1", "90.0.0.1", 1000, 80))
    with pytest.raises(ConfigError, match=message):
        explain_both(plane, PacketIn(frame), NOW, what_if, services=finder((), None))


@pytest.mark.parametrize(
    ("text", "pod"),
    [
        ("10.0.0.1", ("10.0.0.1", 0, 1)),
        ("10.0.0.1:80", ("10.0.0.1", 80, 1)),
        ("10.0.0.1:80*3", ("10.0.0.1", 80, 3)),
        ("2001::1", ("2001::1", 0, 1)),
        ("[2001::1]:80*0", ("2001::1", 80, 0)),
    ],
)
def test_pods_are_spelled_as_everywhere(text: str, pod: tuple[str, int, int]) -> None:
    found = parse_pod(text, "--with-pod")
    assert (str(found.address), found.port, found.weight) == pod
