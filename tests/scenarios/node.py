"""A node with a data plane, as scenarios see it: manifests in, packets in, packets out.

Everything between is the real thing: the files are loaded, decided, compiled, and packets run through the graph.
"""

from __future__ import annotations

import json
from ipaddress import ip_address
from pathlib import Path
from typing import NamedTuple

import packets
from differential.plane import CompiledPlane
from differential.strategies import Config as PlaneConfig
from kuproxy.codes import Outcome, Reason
from kuproxy.control import policy
from kuproxy.kube.convert import Converted, convert_document
from kuproxy.load import load_config
from kuproxy.model.node import NodeView
from kuproxy.reference import RefPacket

OUTSIDE, PODS = 0, 1  # interfaces; what pods answer comes in at the second one
TICKS = 10  # a second
FLOWS = 32  # of one client: more than chance would send to one of two pods (2^-31)


class Seen(NamedTuple):
    """What became of a packet."""

    fate: str  # forwarded, refused, dropped, passed
    source: str  # as the pod sees it
    source_port: int
    target: str  # the pod, `10.1.0.10:8080`


def text(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def ends(frame: bytes) -> tuple[str, int, str, int]:
    """Source and destination of a TCP, UDP or SCTP packet; the ports of an echo are 0."""
    l3, l4, protocol, _ = packets.headers(frame)
    width, at = (4, l3 + 12) if frame[l3] >> 4 == 4 else (16, l3 + 8)
    source, destination = (str(ip_address(frame[at + n * width :][:width])) for n in (0, 1))
    if protocol in (packets.ICMP, packets.ICMP6):
        return source, 0, destination, 0
    ports = (int.from_bytes(frame[l4 + n : l4 + n + 2], "big") for n in (0, 2))
    return source, next(ports), destination, next(ports)


class Node:
    """One node and the files that it reads."""

    def __init__(self, directory: Path, pods: tuple[str, ...]) -> None:
        self.plane = CompiledPlane(PlaneConfig(buckets=1024, any_node_address=False))
        self.plane.mark_interface(PODS, True, True)
        self.now = 1000
        self._file = directory / "objects.json"
        self._script = directory / "node.ku"
        self._script.write_text(f"ku conf pod-ranges {','.join(pods)}\n")
        self._empty = self.plane.compiler.in_use()
        self._services: dict[str, policy.ServiceVips] = {}

    # ------------------------------------------------------------------------------------------- what it reads

    def read(self, documents: list[dict]) -> None:
        """The manifests, and the flows that end with the change."""
        self._file.write_text(json.dumps({"kind": "List", "items": documents}))
        config = load_config([self._file, self._script])
        compiler = self.plane.compiler
        compiler.set_pod_ranges(config.settings.pod_ranges)
        compiler.set_node_ranges(config.node_addresses)
        compiler.set_node_addresses(config.node_addresses)
        first = {address.version: address for address in reversed(config.node_addresses)}
        compiler.set_masquerade(first.values())
        self.plane._apply(self.plane.store.replace("files", config.vips))
        for key, pod in self._stale(documents):
            self.plane.flush(key, pod.address, pod.port)

    def _stale(self, documents: list[dict]):
        objects = Converted()
        for document in documents:
            convert_document(document, objects)
        view = NodeView(objects.nodes[0][0])
        slices = [each for each, _ in objects.slices]
        before, self._services = self._services, {}
        for service, _ in objects.services:
            own = [
                each for each in slices if (each.namespace, each.service) == (service.namespace, service.name)
            ]
            self._services[service.full_name] = policy.translate(service, own, view)
            if service.full_name in before:
                yield from policy.stale_udp(before[service.full_name], self._services[service.full_name])

    # --------------------------------------------------------------------------------------------------- packets

    def send(self, frame: bytes) -> Seen:
        """One packet; what is forwarded is answered by its pod, and the answer must reach the client."""
        [result] = self.plane.receive([RefPacket(frame, OUTSIDE)], self.now)
        if result.outcome is not Outcome.TRANSMIT:
            return Seen({Outcome.DROP: "dropped", Outcome.PASS: "passed"}[result.outcome], "", 0, "")
        assert not packets.verify_checksums(result.data)
        if result.reason is not Reason.FORWARDED:
            assert ends(result.data)[2] == ends(frame)[0], "told to whoever asked"
            return Seen("refused" if result.reason is Reason.REJECT_SENT else "answered", "", 0, "")
        source, source_port, pod, port = ends(result.data)
        [answer] = self.plane.receive([RefPacket(packets.reply_to(result.data), PODS)], self.now)
        client, client_port, vip, vip_port = ends(frame)
        assert ends(answer.data) == (vip, vip_port, client, client_port), (
            "the answer comes from whom was asked"
        )
        assert not packets.verify_checksums(answer.data)
        return Seen("forwarded", source, source_port, text(pod, port))

    def wait(self, seconds: float) -> None:
        self.now += round(seconds * TICKS)

    # ------------------------------------------------------------------------------------------------- the end

    def empty(self) -> dict[str, int]:
        """What is left when all is deleted and every flow has ended; nothing, if all is well."""
        self.plane._apply(self.plane.store.replace("files", []))
        self.plane.compiler.set_pod_ranges(())
        self.plane.compiler.set_node_ranges(())
        self.plane.compiler.set_node_addresses(())
        self.wait(1e6)
        for _ in range(3):
            self.plane.collect(self.now)
        left = self.plane.compiler.in_use()
        return {name: count for name, count in left.items() if count != self._empty[name]}
