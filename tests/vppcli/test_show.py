"""The text of `show`, whole."""

from __future__ import annotations

import json
from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest

from kuproxy.codes import FlowState, Node, Origin, PodCounter, Protocol, Reason, VipCounter, VipType
from kuproxy.model.config import InterfaceMark, Settings, Show, ShowKind
from kuproxy.model.report import (
    KERNEL,
    CacheReport,
    FlowList,
    FlowReport,
    NodeCount,
    PodReport,
    ReplyReport,
    Report,
    VipReport,
    WorkerReport,
)
from kuproxy.model.vip import Pod, Vip, VipKey
from kuproxy.vppcli.show import render, to_json

REPORT = Report(
    settings=Settings(buckets=1024, timeout_s=40.0),
    vips=(
        VipReport(
            1,
            Vip(VipKey(ip_network("90.0.0.0/8"), port=3306), VipType.IP4_NAT44, 3307, 30964),
            counters={
                VipCounter.FIRST_PACKET: 4, VipCounter.NEXT_PACKET: 17, VipCounter.TO_POD_BYTES: 2100,
                VipCounter.FROM_POD_PACKETS: 20, VipCounter.FROM_POD_BYTES: 2000,
            },
            pods=(
                PodReport(
                    ip_address("10.0.0.1"), 0, 512, 3, False,
                    {PodCounter.TO_POD_PACKETS: 21, PodCounter.TO_POD_BYTES: 2100, PodCounter.FLOWS: 4},
                ),
                PodReport(ip_address("10.0.0.2"), 9090, 512, 0),
                PodReport(ip_address("10.0.0.3"), 0, 0, 1, draining=True),
            ),
        ),
        VipReport(
            2,
            Vip(
                VipKey(ip_network("2003::1/128"), Protocol.UDP, 53),
                VipType.IP6_NAT66,
                new_len=2048,
                reject=True,
                owner="shop/dns:dns",
            ),
            removed=True,
            counters={VipCounter.NO_SERVER: 2},
            pods=(PodReport(ip_address("2001::2"), 8053, 0, 5, draining=True),),
        ),
    ),
    nodes=(
        NodeCount(Node.NAT44, Reason.FORWARDED, 21),
        NodeCount(Node.INPUT, Reason.TRUNCATED_L4, 0),
        NodeCount(Node.NAT4_IN2OUT, Reason.NO_TRANSLATION, 1),
        NodeCount(Node.NAT4_IN2OUT, Reason.IN2OUT, 12345678901),
    ),
    workers=(WorkerReport(0, 9, 4096), WorkerReport(1, 0, 4096)),
    interfaces=(InterfaceMark("eth0", True, True), InterfaceMark("eth1", False, True)),
)


def test_show_ku() -> None:
    assert (
        render(REPORT, Show())
        == """\
kube-proxy
 #vips: 1
 #pods: 2
 buckets: 1024
 interface eth0: nat4 nat6 in
 interface eth1: nat6 in
core 0
  timeout: 40s
  usage: 9 / 4096
core 1
  timeout: 40s
  usage: 0 / 4096
"""
    )


def test_show_ku_vips() -> None:
    assert render(REPORT, Show(ShowKind.VIPS)) == (
        "ip4-nat44 90.0.0.0/8 port:3306 target_port:3307 node_port:30964 new_size:1024 #pod:2\n"
        "ip6-nat66 2003::1/128 protocol:udp port:53 target_port:53 node_port:0 new_size:2048 #pod:0 removed\n"
    )


def test_show_ku_vips_verbose() -> None:
    assert (
        render(REPORT, Show(ShowKind.VIPS, True))
        == """\
ip4-nat44 [1] 90.0.0.0/8
  new_size:1024
  port:3306 target_port:3307 node_port:30964
  counters:
    packet from existing sessions: 17
    first session packet: 4
    untracked packet: 0
    no server configured: 0
    bytes to pods: 2100
    packets from pods: 20
    bytes from pods: 2000
  #pod:2
    10.0.0.1 512 buckets   3 flows  used
      packets to the pod: 21, bytes to the pod: 2100, flows created: 4
    10.0.0.2:9090 512 buckets   0 flows  used
    10.0.0.3 0 buckets   1 flows  removed
ip6-nat66 [2] 2003::1/128 removed
  new_size:2048
  protocol:udp port:53 target_port:53 node_port:0
  owner:shop/dns:dns
  counters:
    packet from existing sessions: 0
    first session packet: 0
    untracked packet: 0
    no server configured: 2
    bytes to pods: 0
    packets from pods: 0
    bytes from pods: 0
  #pod:0
    [2001::2]:8053 0 buckets   5 flows  removed
"""
    )


def test_show_node_counters() -> None:
    assert (
        render(REPORT, Show(ShowKind.NODES))
        == """\
           Count  Node                  Reason
              21  kp4-nat4              packets sent to a pod
               1  kp-nat4-in2out        No translation
     12345678901  kp-nat4-in2out        Good in2out packets processed
"""
    )


def test_nothing_to_show() -> None:
    assert render(Report(), Show()) == "kube-proxy\n #vips: 0\n #pods: 0\n buckets: 1024\n"
    for show in (Show(ShowKind.VIPS), Show(ShowKind.VIPS, True), Show(ShowKind.NODES)):
        assert render(Report(), show) == ""


def test_clients_of_two_origins_are_told_apart() -> None:
    def report(outside: tuple[Pod, ...], slots: int) -> Report:
        here = ip_address("10.0.0.1")
        vip = Vip(
            VipKey(ip_network("90.0.0.1/32"), Protocol.TCP, 80),
            VipType.IP4_NAT44,
            pods=(Pod(here), Pod(ip_address("10.0.0.2"))),
            outside_pods=outside,
            masquerade_from=Origin.NODE | Origin.OUTSIDE,
        )
        return Report(vips=(VipReport(1, vip, pods=(PodReport(here, 0, 512, 0, outside_slots=slots),)),))

    local = report((Pod(ip_address("10.0.0.1")),), 1024)
    text = render(local, Show(ShowKind.VIPS, verbose=True))
    assert "  masquerade:node,outside\n" in text
    assert "    10.0.0.1 512 buckets inside, 1024 outside   0 flows  used\n" in text
    [told] = to_json(local)["vips"]
    assert told["masquerade_from"] == ["node", "outside"]
    assert told["pods"][0]["outside_buckets"] == 1024
    text = render(report((), 0), Show(ShowKind.VIPS, verbose=True))
    assert "    nobody for clients from outside: they are dropped\n" in text


def test_json_has_the_same_and_is_json() -> None:
    told = json.loads(json.dumps(to_json(REPORT)))
    assert (told["settings"]["buckets"], told["settings"]["timeout"]) == (1024, 40.0)
    assert told["settings"]["timeouts"]["tcp-established"] == 40.0
    assert told["settings"]["masquerade"] == []
    assert told["interfaces"][1] == {"name": "eth1", "nat4_in": False, "nat6_in": True}
    assert told["workers"][0] == {"index": 0, "flows": 9, "capacity": 4096, "states": {}}
    assert told["nodes"][0] == {
        "node": "kp-input",
        "reason": "TRUNCATED_L4",
        "text": "packet ends inside its TCP, UDP, SCTP or ICMP header",
        "count": 0,
    }
    assert told["vips"][0]["pods"][1] == {
        "address": "10.0.0.2", "port": 9090, "buckets": 512, "flows": 0, "removed": False, "weight": 1,
        "outside_buckets": None,
        "counters": dict.fromkeys(
            ("to_pod_packets", "to_pod_bytes", "from_pod_packets", "from_pod_bytes", "flows"), 0
        ),
    }  # fmt: skip
    del told["vips"][1]["pods"]
    assert told["vips"][1] == {
        "index": 2,
        "prefix": "2003::1/128",
        "protocol": "udp",
        "port": 53,
        "target_port": 53,
        "node_port": 0,
        "type": "ip6-nat66",
        "new_len": 2048,
        "reject": True,
        "masquerade": False,
        "masquerade_from": [],
        "reset": False,
        "affinity": 0.0,
        "source_ranges": [],
        "hash": "flow",
        "sessions": 0,
        "owner": "shop/dns:dns",
        "removed": True,
        "encap": "nat",
        "dscp": 0,
        "gue_port": 0,
        "counters": {
            "next_packet": 0, "first_packet": 0, "untracked_packet": 0, "no_server": 2,
            "to_pod_bytes": 0, "from_pod_packets": 0, "from_pod_bytes": 0, "evicted": 0,
        },
    }


def test_general_names_the_driver_where_traffic_is_live() -> None:
    general = Show(ShowKind.GENERAL)
    assert "driver" not in render(Report(), general)
    report = Report(driver="af_xdp, native mode")
    assert " driver: af_xdp, native mode\n" in render(report, general)
    assert to_json(report)["driver"] == "af_xdp, native mode"


def test_show_ku_tells_which_ways_cached_flows_take() -> None:
    ways = {"route": 2, "neighbour": 1, "peer": 3}
    cache = CacheReport(
        on=True, flows=3, capacity=8, hits=900, short=700, ways=ways, because={"a VRF": 2}
    )
    lines = render(Report(cache=cache), Show()).splitlines()
    at = lines.index(" flow cache: on, 3 of 8 flows")
    assert lines[at + 1 :] == [
        "  ways: route 2, neighbour 1, peer 3; 700 of 900 packets by shortcuts",
        "  route because of a VRF: 2",
    ]
    assert " flow cache: off (no)" in render(Report(cache=CacheReport(on=False, why="no")), Show())
    assert "ways" not in render(Report(cache=CacheReport(on=True)), Show())


@pytest.mark.parametrize(
    ("path", "where"),
    [("strict", "from where the pod is"), ("any", "from anywhere"), ("marked", "from marked interfaces")],
)
def test_show_ku_tells_where_replies_are_taken(path: str, where: str) -> None:
    report = Report(replies=ReplyReport(path, 7))
    assert f" replies of pods: {where}; 7 packets in a pod's name refused\n" in render(report, Show())
    assert to_json(report)["replies"] == {"path": path, "refused": 7}
    assert "replies" not in render(Report(), Show())


def test_show_flows_tells_which_ways_the_kernel_takes() -> None:
    flow = FlowReport(
        worker=0, slot=1, vip=None, protocol=6, client=ip_address("10.1.0.9"), client_port=1, pod_port=80,
        destination=ip_address("90.0.0.1"), destination_port=80, pod=ip_address("10.0.0.1"), source_port=1,
        state=FlowState.TCP_ESTABLISHED, age_s=1.0, expires_in_s=2.0,
    )  # fmt: skip
    flows = (flow, replace(flow, tier=KERNEL), replace(flow, tier=KERNEL, ways=("peer", "route")))
    report = Report(flows=FlowList(flows))
    ends = [line.split("s  ")[-1].strip() for line in render(report, Show(ShowKind.FLOWS)).splitlines()[1:]]
    assert ends == ["worker", "kernel", "kernel peer/route"]
