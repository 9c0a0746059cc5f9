"""`ku trace add` and `show trace`: what is told, what is not, and that nobody is left out."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import numpy as np

import packets
from kuproxy.codes import Node, Outcome
from kuproxy.dataplane import graph
from kuproxy.dataplane.layout import MAX_TRACED, TRACE_SLOTS, W_TRACE_NEXT
from kuproxy.drivers.memory import MemoryDriver
from kuproxy.engine.local import LocalEngine
from kuproxy.engine.trace import trace_rows
from kuproxy.model import config
from kuproxy.model.config import Config, Show, ShowKind
from kuproxy.model.report import Report
from kuproxy.plane import Plane
from kuproxy.vppcli.apply import Desired
from kuproxy.vppcli.show import render, to_json

SCRIPT = """
ku conf ip4-src-address 192.0.2.1
ku vip 90.0.0.1 port 80 protocol tcp target_port 8080 new_len 16
ku pod 90.0.0.1 10.0.0.1
ku vip 9000::1 encap gre4 new_len 16
ku pod 9000::1 10.0.0.9
"""


class Traced:
    def __init__(self, script: str = SCRIPT) -> None:
        desired = Desired()
        desired.run(script)
        self.config: Config = desired.config()
        self.engine = LocalEngine(4)
        self.plane = Plane(self.engine, decrement_ttl=True, any_node_address=True)
        self.plane.apply(self.config)
        self.driver = MemoryDriver()  # one for all: held fragments lie in its frame

    def send(self, *frames: bytes, now: int = 100) -> None:
        self.driver.inject(frames)
        self.driver.receive(self.driver.frame)
        self.engine.process(self.driver.frame, now)
        self.driver.transmit(self.driver.frame)

    def text(self) -> str:
        return render(self.plane.report(), Show(ShowKind.TRACE))


SYN = packets.frame(packets.tcp("40.0.0.1", "90.0.0.1", 10001, 80, flags=packets.SYN))


def test_the_way_of_two_packets() -> None:
    traced = Traced()
    traced.engine.trace(2)
    traced.send(SYN, SYN, SYN)
    assert traced.text() == """\
------------------- Start of worker 0 -------------------
Packet 1

00:00:00:000000: kp-input
  interface 0, 54 bytes
  TCP 40.0.0.1:10001 -> 90.0.0.1:80, flow hash 0x2a435cc0
00:00:00:000000: kp-lookup
  VIP [1] 90.0.0.1/32 protocol tcp port 80
00:00:00:000000: kp-balance
  first session packet, pod 10.0.0.1:8080
  flow 0
  new-flow slot 0 of 16
00:00:00:000000: kp4-nat4
  TCP 40.0.0.1:10001 -> 10.0.0.1:8080
  TRANSMIT: packets sent to a pod

Packet 2

00:00:00:000000: kp-input
  interface 0, 54 bytes
  TCP 40.0.0.1:10001 -> 90.0.0.1:80, flow hash 0x2a435cc0
00:00:00:000000: kp-lookup
  VIP [1] 90.0.0.1/32 protocol tcp port 80
00:00:00:000000: kp-balance
  packet from existing sessions, pod 10.0.0.1:8080
  flow 0
00:00:00:000000: kp4-nat4
  TCP 40.0.0.1:10001 -> 10.0.0.1:8080
  TRANSMIT: packets sent to a pod

"""


def test_a_tunnel_a_drop_and_the_time() -> None:
    traced = Traced()
    traced.engine.trace(10)
    traced.send(packets.frame(packets.udp("4000::1", "9000::1", 1024, 53)))
    traced.send(SYN[:20], now=100 + 36015)
    text = traced.text()
    assert "GRE 192.0.2.1 -> 10.0.0.9\n  TRANSMIT: packets sent to a pod through a tunnel\n" in text
    assert "01:00:01:500000: kp-input\n  interface 0, 20 bytes\n  DROP: packet ends inside its IPv4 header\n" in text
    told = to_json(traced.plane.report())["trace"]
    assert [step["node"] for step in told[0]["steps"]] == ["kp-input", "kp-lookup", "kp-balance", "kp-gre"]
    assert told[0]["steps"][3]["destination"] == "10.0.0.9"
    assert told[1]["steps"][0]["reason"] == "TRUNCATED_IPV4"


def test_nothing_is_recorded_unasked_and_the_ring_keeps_the_newest() -> None:
    traced = Traced()
    traced.send(SYN)
    assert traced.text() == "" and traced.engine.state.header[W_TRACE_NEXT] == 0
    for _ in range(3):
        traced.engine.trace(10 * MAX_TRACED)  # never more than MAX_TRACED at once
        for _ in range(6):
            traced.send(*[SYN] * 190)
    assert traced.engine.state.header[W_TRACE_NEXT] == 3 * MAX_TRACED * 4
    rows = list(trace_rows(traced.engine.states))
    assert len(rows) == TRACE_SLOTS
    assert rows[-1]["number"] == 3 * MAX_TRACED and rows[-1]["outcome"] == Outcome.TRANSMIT
    assert MAX_TRACED == config.MAX_TRACED and MAX_TRACED * 8 <= TRACE_SLOTS


def test_a_held_fragment_comes_back_as_a_new_packet() -> None:
    traced = Traced()
    traced.engine.trace(2)
    datagram = packets.tcp("40.0.0.1", "90.0.0.1", 10001, 80, bytes(60))
    first, *later = packets.fragments(datagram, 40, identification=7)
    traced.send(later[0])
    assert traced.driver.counts[Outcome.TRANSMIT] == 0
    traced.send(first)
    nodes: dict[int, list[str]] = {}
    for row in trace_rows(traced.engine.states):
        nodes.setdefault(row["number"], []).append(Node(row["node"]).label)
    assert nodes[1] == ["kp-input", "kp-fragment"]
    assert nodes[2] == ["kp-input", "kp-fragment", "kp-lookup", "kp-balance", "kp4-nat4"]
    assert nodes[3] == ["kp-fragment", "kp-lookup", "kp-balance", "kp4-nat4"]


def test_a_vip_that_was_deleted_since_is_not_mistaken_for_its_successor() -> None:
    traced = Traced()
    traced.engine.trace(1)
    traced.send(SYN)
    traced.plane.apply(Config(settings=traced.config.settings))
    assert "VIP [1] deleted since" in traced.text()


def test_every_node_is_traced() -> None:
    source = inspect.getsource(getattr(graph.run_graph, "py_func", graph.run_graph))
    traced = set(re.findall(r"trace_node\(frame, tables, state, now, _(\w+)\)", source))
    assert traced == {node.name for node in graph.NODES}


def test_script_and_file(tmp_path: Path) -> None:
    desired = Desired()
    desired.run("ku trace add 5\ntrace add 2\nshow trace\nku show trace")
    assert desired.config().trace == 7
    assert [show.kind for show in desired.shows] == [ShowKind.TRACE] * 2
    assert render(Report(), desired.shows[0]) == ""


def test_sums_of_the_pods_are_the_vips() -> None:
    """And both are the capture's: IP total lengths of what went to the VIP."""
    traced = Traced(SCRIPT + "ku pod 90.0.0.1 10.0.0.2 10.0.0.3\n")
    frames = [
        packets.frame(packets.tcp("40.0.0.1", "90.0.0.1", port, 80, bytes(port % 50)), pad_to=60)
        for port in range(1024, 1064)
    ]
    traced.send(*frames)
    report = traced.plane.report()
    counters = next(vip for vip in report.vips if vip.vip.key.port == 80)
    sizes = [int.from_bytes(frame[16:18], "big") for frame in frames]
    to_bytes = {name: sum(pod.counters[each] for pod in counters.pods for each in pod.counters if each.name == name)
                for name in ("TO_POD_BYTES", "TO_POD_PACKETS", "FLOWS")}  # fmt: skip
    assert to_bytes == {"TO_POD_BYTES": sum(sizes), "TO_POD_PACKETS": 40, "FLOWS": 40}
    assert sum(counters.counters[each] for each in counters.counters if each.name == "TO_POD_BYTES") == sum(sizes)
    assert np.count_nonzero(traced.engine.state.pod_counters.any(axis=1)) == 3


def test_a_new_pod_does_not_inherit_the_counts_of_its_index() -> None:
    traced = Traced()
    traced.send(SYN)
    traced.plane.apply(Config(settings=traced.config.settings))
    traced.engine.maintain(100)
    for _ in range(3):
        traced.plane.collect()
    traced.plane.apply(traced.config)
    assert all(not any(pod.counters.values()) for vip in traced.plane.report().vips for pod in vip.pods)


def test_the_slot_is_the_one_that_chose_the_pod() -> None:
    """By the flow's hash, or by the client's address alone where the VIP says so."""
    pods = [f"10.0.0.{number}" for number in range(1, 9)]
    for hashing in ("", "hash source"):
        vip = f"ku vip 90.0.0.1 port 80 protocol tcp new_len 64 {hashing}\n"
        traced = Traced(f"{vip}ku pod 90.0.0.1 {' '.join(pods)}\n")
        [record] = traced.plane.compiler.records()
        owners = traced.plane.compiler.owners_of(record).tolist()
        traced.engine.trace(6)
        clients = [("40.0.0.1", 1000), ("40.0.0.1", 1001), ("40.0.0.1", 1002), ("40.0.0.9", 1000), ("40.0.0.9", 1001)]
        for client, port in clients:
            traced.send(packets.frame(packets.tcp(client, "90.0.0.1", port, 80, flags=packets.SYN)))
        steps = [step for each in traced.plane.report().trace for step in each.steps if step.node is Node.BALANCE]
        names = {index: pod.address for pod, index in record.pods.items()}
        assert [names[owners[step.ring_slot]] for step in steps] == [step.pod for step in steps]
        slots = [step.ring_slot for step in steps]
        assert len(set(slots[:3])) == len(set(slots[3:])) == 1 if hashing else len(set(slots)) == len(slots)
