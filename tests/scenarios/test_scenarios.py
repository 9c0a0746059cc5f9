"""Manifests in, packets in, packets out, tables empty at the end: one file each in this directory.

    tcp 198.51.100.7 > 203.0.113.1:80 -> 192.0.2.1 > 10.1.0.10:8080, 10.2.0.10:8080

reads: of 32 connections of this client, each gets one of these pods and every pod gets one, and the pods see the node
as the source. A source that is the client's own keeps its port.
"""

from __future__ import annotations

import re
from itertools import count
from pathlib import Path

import pytest
import yaml

import packets
from scenarios.node import FLOWS, Node, Seen, ends

SCENARIOS = sorted(Path(__file__).parent.glob("*.yaml"))
LINE = re.compile(r"(\w+) (\S+) > (\S+) -> (?:(\S+) > )?(.+)")
PROTOCOLS = ("tcp", "udp", "sctp", "echo")


class Story:
    """The steps of one file, carried out one by one."""

    def __init__(self, node: Node, documents: list[dict]) -> None:
        self.node = node
        self.documents = {self._name(each): each for each in documents}
        self.node.read(documents)
        self._ports = count(10000)
        self._flows: list[tuple[bytes, Seen]] = []

    @staticmethod
    def _name(document: dict) -> tuple[str, str]:
        return document["kind"], document["metadata"]["name"]

    def step(self, step: str | dict) -> None:
        if isinstance(step, str):
            self.flows_go_on() if step == "flows go on" else self.packets(step)
            return
        [(what, value)] = step.items()
        if what == "wait":
            self.node.wait(value)
        elif what == "change":
            self.documents |= {self._name(each): each for each in value}
            self.node.read(list(self.documents.values()))
        elif what == "flows go to":
            assert {each.target for each in self._again()} == {value}
        elif what == "flows are":
            assert {each.fate for each in self._again()} == {value}
        else:
            raise ValueError(f"{what!r} is no step")

    def packets(self, line: str) -> None:
        match = LINE.fullmatch(line)
        assert match is not None, f"cannot read {line!r}"
        protocol, client, target, source, result = match.groups()
        frames = list(self._frames(protocol, client, target))
        seen = [self.node.send(frame) for frame in frames]
        if source is None:
            assert {each.fate for each in seen} == {result}, line
            return
        assert {each.source for each in seen} == {source}, line
        targets = {each.target for each in seen}
        if result.startswith("one of "):
            assert len(targets) == 1, line
            assert targets <= set(result.removeprefix("one of ").split(", ")), line
        elif result == "the same pod":
            former = {each.target for frame, each in self._flows if self._is_from(frame, client)}
            assert targets == former, line
        else:
            assert targets == set(result.split(", ")), line
        self._flows += zip(frames, seen, strict=True)

    @staticmethod
    def _is_from(frame: bytes, client: str) -> bool:
        return ends(frame)[0] == client

    def _frames(self, protocol: str, client: str, target: str):
        assert protocol in PROTOCOLS
        if protocol == "echo":
            yield packets.frame(packets.echo(client, target))
            return
        address, _, port = target.rpartition(":")
        for _ in range(FLOWS):
            two = client, address.strip("[]"), next(self._ports), int(port)
            datagram = (
                packets.tcp(*two, flags=packets.SYN)
                if protocol == "tcp"
                else getattr(packets, protocol)(*two)
            )
            yield packets.frame(datagram)

    def flows_go_on(self) -> None:
        """Every flow so far still reaches its pod, as it did."""
        assert self._again() == [seen for _, seen in self._flows]

    def _again(self) -> list[Seen]:
        """What becomes of further packets of the flows so far."""
        assert self._flows
        return [self.node.send(self._later(frame)) for frame, _ in self._flows]

    @staticmethod
    def _later(frame: bytes) -> bytes:
        """A packet in the middle of a connection."""
        _, _, protocol, _ = packets.headers(frame)
        if protocol != packets.TCP:
            return frame
        source, source_port, destination, port = ends(frame)
        return packets.frame(packets.tcp(source, destination, source_port, port, b"more", flags=packets.ACK))


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: path.stem)
def test_scenario(path: Path, tmp_path: Path) -> None:
    documents = list(yaml.safe_load_all(path.read_text()))
    [script] = [each for each in documents if "steps" in each]
    node = Node(tmp_path, tuple(script["pods"]))
    story = Story(node, [each for each in documents if "kind" in each])
    for step in script["steps"]:
        story.step(step)
    assert node.empty() == {}
