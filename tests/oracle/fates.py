"""What became of probes on a node, in words that two implementations can be compared by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from oracle.cases import Probe
from oracle.planes import Ours, Theirs
from oracle.wires import NODE_OWN, Seen, Wires
from packets import ACK, ICMP, ICMP6, RST, SYN, TCP, UDP, frame, tcp, udp

STEP = 100_000  # between the numbers of a client's packets
ANOTHER_PORT = 30_000  # of the same client: its second connection


@dataclass
class Fate:
    """`what`: translated, passed (routed on untouched), local (handed to the node untouched), refused, expired (an
    ICMP time exceeded came), dropped; `twice` if more than one of these happened."""

    what: str = "dropped"
    endpoint: tuple[str, int] | None = None
    source: str = ""  # translated: "kept" or "node"
    ttl: int = 0
    by: str = ""  # refused: "reset" or "icmp"
    reply: str = ""  # translated: what the client saw of the endpoint's answer: "restored", or what else
    again: str = ""  # translated: the flow's next packet went to the "same" endpoint, or what else
    second: tuple[str, int] | None = None  # the endpoint of the client's next connection
    seen: list[Seen] = field(default_factory=list, repr=False)


def ask(plane: Ours | Theirs, probes: Sequence[Probe], marker: Probe) -> dict[Probe, Fate]:
    """Send them, answer in the endpoints' place, send the flows' next packets, and second connections.

    `marker` goes to the sentinel, behind the packets of every step; so the step ends only after them.
    """
    steps = _Steps(plane.wires, marker)
    got = steps.send([(each.where, each.frame()) for each in probes])
    fates = {probe: _fate(probe, got) for probe in probes}
    translated = [probe for probe, fate in fates.items() if fate.what == "translated"]
    answered = [fates[probe].seen[0] for probe in translated]
    got = steps.send([(each.where, _answer(each)) for each in answered])
    for probe in translated:
        fates[probe].reply = _reply(probe, [each for each in got if _is_for_client(each, probe)])
    again = [replace(probe, flags=ACK) for probe in translated]
    got = steps.send([(each.where, each.frame()) for each in again])
    for probe, next_one in zip(translated, again, strict=True):
        fates[probe].again = "same" if _fate(next_one, got).endpoint == fates[probe].endpoint else "another"
    second = [
        replace(probe, number=probe.number + STEP, source_port=probe.source_port + ANOTHER_PORT)
        for probe in translated
    ]
    got = steps.send([(each.where, each.frame()) for each in second])
    for probe, next_one in zip(translated, second, strict=True):
        fates[probe].second = _fate(next_one, got).endpoint
    return fates


class _Steps:
    """Packets, step by step, each with a marker of its own behind."""

    def __init__(self, wires: Wires, marker: Probe) -> None:
        self._wires, self._marker = wires, marker

    def send(self, frames: Sequence[tuple[str, bytes]]) -> list[Seen]:
        self._marker = replace(self._marker, number=self._marker.number + STEP)
        for where, data in (*frames, (self._marker.where, self._marker.frame())):
            self._wires.send(where, data)
        return self._wires.collect(until=[self._marker.mark])


def _fate(probe: Probe, got: Sequence[Seen]) -> Fate:
    fates = []
    for each in got:
        if each.protocol == probe.protocol and each.mark[:4] == probe.mark:
            fates.append(_forwarded(probe, each))
        elif each.where == probe.where and each.destination == probe.source:
            refused = _refused(probe, each)
            if refused is not None:
                fates.append(refused)
    if any(fate.what == "local" for fate in fates):
        # The node's own stack answers for what is its own.
        fates = [fate for fate in fates if fate.what != "refused"]
    if len(fates) > 1:
        return Fate("twice", seen=[x for fate in fates for x in fate.seen])
    return fates[0] if fates else Fate()


def _forwarded(probe: Probe, each: Seen) -> Fate:
    untouched = (each.source, each.source_port, each.destination, each.destination_port) == (
        probe.source,
        probe.source_port,
        probe.target,
        probe.port,
    )
    if untouched:
        return Fate("local" if each.where == "node" else "passed", ttl=each.ttl, seen=[each])
    own = NODE_OWN[6 if ":" in probe.source else 4]
    if each.source in own:
        source = "node"
    else:
        source = "kept" if (each.source, each.source_port) == (probe.source, probe.source_port) else "other"
    endpoint = (each.destination, each.destination_port)
    return Fate("translated", endpoint, source, each.ttl, seen=[each])


def _refused(probe: Probe, each: Seen) -> Fate | None:
    """What told the client that it is not served."""
    if each.protocol == TCP and each.flags & RST:
        ports = (each.source_port, each.destination_port)
        ours = each.source == probe.target and ports == (probe.port, probe.source_port)
        return Fate("refused", by="reset", seen=[each]) if ours and probe.protocol == TCP else None
    if each.is_error:
        inner = each.about()
        if (inner.destination, inner.destination_port, inner.source_port) == (
            probe.target,
            probe.port,
            probe.source_port,
        ):
            expired = (each.protocol, each.source_port) in ((ICMP, 11), (ICMP6, 3))
            return Fate("expired" if expired else "refused", by="icmp", seen=[each])
    return None


def _answer(seen: Seen) -> bytes:
    """The endpoint's, to whom it saw."""
    there = (seen.destination, seen.source, seen.destination_port, seen.source_port)
    if seen.protocol == UDP:
        return frame(udp(*there, b"answer to " + seen.mark))
    sequence = int.from_bytes(seen.payload[4:8], "big")
    flags = SYN | ACK if seen.flags & SYN else ACK
    length = 1 if seen.flags & SYN else 0
    own = int.from_bytes(seen.payload[8:12], "big")
    return frame(tcp(*there, flags=flags, sequence=own, acknowledgement=sequence + length))


def _is_for_client(each: Seen, probe: Probe) -> bool:
    return (
        each.where == probe.where
        and each.protocol == probe.protocol
        and (each.destination, each.destination_port) == (probe.source, probe.source_port)
    )


def _reply(probe: Probe, got: Sequence[Seen]) -> str:
    if len(got) != 1:
        return f"{len(got)} packets"
    [each] = got
    return "restored" if (each.source, each.source_port) == (probe.target, probe.port) else str(each)
