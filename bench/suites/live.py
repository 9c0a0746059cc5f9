"""Live on veth: kuproxy beside kernel nftables as kube-proxy writes it, in turn, in one run.

Beside both: plain routing, and a link between client and pod with nothing in between, which no data plane can beat.

A case is one load through one peer; all of them are warmed up for as long, over the sockets that are measured (but for
connections that live shorter).  Peers of a load follow each other within a round, and ratios are taken within the
round: what the machine's other guests do then falls on all alike.  `CPU` is the whole machine's, softirqs included,
less that of processes that are not part of it; the parts of client, pod and plane are what their processes were charged
for.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass

from bench.harness import Case, Figure, Sample, Scale
from bench.live.bed import PREFIX, Bed, Outcome, Peer, missing_programs
from bench.suites.graph import count_name
from kuproxy.demo.topology import remove_stale

BASE = "nftables"
PACED = 50_000  # packets a second
FLOWS = 64
CONNECTIONS = 32
ROUNDS = 5
# kuproxy with the flow cache, by the way that packets take: into the node, or the shortcuts of docs/flow-cache.md.
CACHES = {
    name: ("--flow-cache=on", f"--flow-cache-shortcuts={shortcuts}")
    for name, shortcuts in (("cache", "off"), ("cache-neighbour", "neighbour"), ("cache-peer", "on"))
}
WARM_S = 3.0  # on a busy machine it takes up to two seconds until a flow is carried


def _rate(outcome: Outcome, what: str, unit: float) -> float:
    return outcome.answer[what] / outcome.answer["seconds"] / unit


def _udp(outcome: Outcome) -> Sample:
    per_packet = 1e6 / max(1, outcome.answer["received"])
    return {
        "rate": _rate(outcome, "received", 1e3),
        "CPU": outcome.cpu_s * per_packet,
        "CPU of plane": outcome.cpu_by_role["plane"] * per_packet,
    }


def _tcp(outcome: Outcome) -> Sample:
    gigabits = max(1e-9, outcome.answer["bits"] / 1e9)
    parts = {f"CPU of {role}": seconds * 1e3 / gigabits for role, seconds in outcome.cpu_by_role.items()}
    return {"throughput": _rate(outcome, "bits", 1e9), "CPU": outcome.cpu_s * 1e3 / gigabits, **parts}


def _http(outcome: Outcome) -> Sample:
    answer = outcome.answer
    latencies = {name: answer[name] for name in ("p50", "p99", "p999") if name in answer}
    requests = max(1, answer["requests"])
    return {
        "requests": _rate(outcome, "requests", 1e3),
        **latencies,
        "CPU": outcome.cpu_s * 1e6 / requests,
        "failures": answer["failures"],
    }


def _idle(outcome: Outcome) -> Sample:
    return {"CPU of plane": outcome.cpu_by_role["plane"] / outcome.answer["seconds"] * 1e3}


@dataclass(frozen=True)
class Load:
    """Something to do to a bed for so many seconds, and what its outcome says."""

    name: str
    run: Callable[[Bed, float, float], Outcome]  # for so many seconds, after so many to warm up
    read: Callable[[Outcome], Sample]
    units: dict[str, str]
    plot: str  # the metric that is drawn


_HTTP_UNITS = {"requests": "k/s", "p50": "us", "p99": "us", "p999": "us", "CPU": "us/request", "failures": "requests"}
_TCP_UNITS = {"throughput": "Gb/s", **{f"CPU{role}": "ms/Gb" for role in ("", " of client", " of pod", " of plane")}}
_UDP_UNITS = {"rate": "kpps", "CPU": "us/packet", "CPU of plane": "us/packet"}


def _streams(number: int) -> Load:
    return Load(f"tcp-{number}stream", lambda bed, s, w: bed.tcp(s, number, w), _tcp, _TCP_UNITS, "throughput")


LOADS = (
    Load("udp64", lambda bed, s, w: bed.udp(s, FLOWS, warm=w), _udp, _UDP_UNITS, "rate"),
    Load("udp64-50kpps", lambda bed, s, w: bed.udp(s, FLOWS, PACED, w), _udp, _UDP_UNITS, "CPU"),
    *map(_streams, (1, 4, 8)),
    Load("connect-close", lambda bed, s, _: bed.http("close", s, CONNECTIONS), _http, _HTTP_UNITS, "requests"),
    Load("keep-alive", lambda bed, s, w: bed.http("keep", s, CONNECTIONS, w), _http, _HTTP_UNITS, "requests"),
    Load("keep-alive-1connection", lambda bed, s, w: bed.http("keep", s, 1, w), _http, _HTTP_UNITS, "p50"),
    Load("idle", lambda bed, s, _: bed.idle(s), _idle, {"CPU of plane": "ms/s"}, "CPU of plane"),
)


class Beds:
    """Those of one run: built when the first case is prepared, gone when the last has finished."""

    def __init__(self) -> None:
        self._open: dict[str, Bed] = {}

    def get(self, peer: Peer) -> Bed:
        if peer.name not in self._open:
            if not self._open:
                remove_stale(PREFIX)
            bed = self._open[peer.name] = Bed(peer)
            bed.await_ready()
        return self._open[peer.name]

    def close(self) -> None:
        while self._open:
            self._open.popitem()[1].close()


class LiveCase(Case):
    """One load through one peer."""

    def __init__(self, load: Load, peer: Peer, seconds: tuple[float, float], beds: Beds, base: LiveCase | None):
        services = f"{count_name(peer.services)}service"
        super().__init__(f"veth-{load.name}-{services}-{peer.name}")
        self.units = load.units  # type: ignore[misc]
        self._load, self._peer, self._seconds, self._beds, self._base = load, peer, seconds, beds, base

    def rounds(self, scale: Scale) -> int:
        return min(ROUNDS, scale.rounds)

    def prepare(self) -> None:
        self._beds.get(self._peer)

    def sample(self) -> Sample:
        return self._load.read(self._load.run(self._beds.get(self._peer), *self._seconds))

    def finish(self) -> None:
        self._beds.close()

    def figures(self) -> list[Figure]:
        """The rounds' own, then for each metric what it is to the same of the base in the same round."""
        found = super().figures()
        if self._base is None:
            return found
        pairs = list(zip(self.samples, self._base.samples, strict=True))
        for metric in self.samples[0]:
            ratios = [own[metric] / other[metric] for own, other in pairs if other[metric] > 0]
            if ratios and metric != "failures" and not metric.startswith("CPU of"):
                self.units = self.units | {f"{metric}, ratio": "x"}  # type: ignore[misc]
                found.append(self.figure(f"{metric}, ratio", ratios, f"to {self._base.name}, round by round"))
        return found


def peers(scale: Scale) -> list[tuple[Peer, str]]:
    """Each with the name of the one that it is compared with; those come first."""
    found = [(Peer(BASE, "nftables"), ""), (Peer("kuproxy", "kuproxy"), BASE)]
    if scale.name == "tiny":
        return found
    found += [(Peer(name, "kuproxy", options=options), BASE) for name, options in CACHES.items()]
    if scale.name == "full":
        many = 10_000
        found += [
            (Peer("routed", "routed"), BASE),
            (Peer("direct", "direct"), BASE),
            (Peer("nftables-loaded", "nftables", many), BASE),
            (Peer("kuproxy-loaded", "kuproxy", many), "kuproxy"),
            (Peer("cache-loaded", "kuproxy", many, CACHES["cache"]), "cache"),
            (Peer("cache-peer-loaded", "kuproxy", many, CACHES["cache-peer"]), "cache-peer"),
        ]
    return found


def cases(scale: Scale) -> list[Case]:
    """Every load through every peer; none, said aloud, where namespaces or programs are missing."""
    missing = ["root"] if os.geteuid() != 0 else missing_programs()
    if missing:
        print(f"suite live is left out: it needs {', '.join(missing)}", file=sys.stderr)
        return []
    seconds = {"full": (2.0, WARM_S), "quick": (1.0, WARM_S)}.get(scale.name, (0.2, 0.0))
    beds = Beds()
    found: list[Case] = []
    for load in LOADS:
        of_load: dict[str, LiveCase] = {}
        for peer, base in peers(scale):
            case = of_load[peer.name] = LiveCase(load, peer, seconds, beds, of_load.get(base))
            found.append(case)
    return found
