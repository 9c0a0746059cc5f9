"""Two planes, one life: a state machine that does the same things to both and compares all that can be seen.

    TestCompiled = machine_for(lambda config: CompiledPlane(config)).TestCase

One plane is always the reference.  The other implements `Plane`.  Both have the same number of workers, and each packet
goes to the worker that steering would give it to.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from random import Random
from typing import ClassVar, Protocol

from hypothesis import note
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import packets
from differential import strategies
from differential.strategies import INSIDE, Config
from kuproxy.codes import Encap, Family, FlowState, Node, Outcome, PodCounter, Reason, VipCounter
from kuproxy.model.vip import Address, Pod, Prefix, Vip, VipKey
from kuproxy.reference import LiveFlow, Reference, RefPacket, Result, Workers
from kuproxy.reference.ports import worker_of
from steering.model import parse
from steering.spread import Spread


class Plane(Protocol):
    """What the machine needs of a data plane. Times are ticks of 32 bits; counters that are 0 may be left out."""

    def set_vip(self, vip: Vip) -> None: ...

    def del_vip(self, key: VipKey) -> None: ...

    def mark_interface(self, index: int, nat4_in: bool, nat6_in: bool) -> None: ...

    def set_timeout(self, ticks: int, state: FlowState | None = None) -> None: ...

    def set_masquerade(self, addresses: tuple[Address, ...]) -> None: ...

    def set_origins(self, pod_ranges: tuple[Prefix, ...], node_addresses: tuple[Address, ...]) -> None:
        """Who is a pod, who is the node."""

    def flush(self, key: VipKey, address: Address, port: int = 0) -> None:
        """End the flows of removed pods with this address."""

    def end_second_chances(self) -> None:
        """The time after the last changes of pods is over."""

    def set_buckets(self, buckets: int, now: int) -> None:
        """Raises ValueError if the live flows do not fit."""

    def set_flow_key(self, key: bytes, now: int) -> None:
        """The same; b"" is VPP's hash."""

    def receive(self, packets: list[RefPacket], now: int, workers: list[int]) -> list[Result]:
        """One vector for each worker, in their order; `workers` says whose each packet is.

        A result for each packet, then for each worker's released fragments in the order of release.
        """

    def sweep(self, now: int) -> object:
        """Drop the fragments that were held too long."""

    def collect(self, now: int) -> None:
        """Forget the removed pods that no live flow refers to."""

    def counters(self) -> Mapping[tuple[Node, Reason], int]: ...

    def vip_counters(self) -> Mapping[VipKey, Mapping[VipCounter, int]]:
        """Of the VIPs that exist."""

    def pod_counters(self) -> Mapping[VipKey, Mapping[Pod, Mapping[PodCounter, int]]]:
        """Of their pods, drained ones that still have flows included; ports are those at the pod."""

    def outcomes(self) -> Mapping[Outcome, int]: ...

    def live_flows(self, now: int) -> list[LiveFlow]:
        """In any order."""


class ReferencePlane:
    """The reference as a plane, to test the machine itself."""

    kind: type[Reference] = Reference

    def __init__(self, config: Config):
        self.reference = Workers(kind=self.kind, **asdict(config))
        self.set_vip = self.reference.set_vip
        self.del_vip = self.reference.del_vip
        self.mark_interface = self.reference.mark_interface
        self.set_timeout = self.reference.set_timeout
        self.set_masquerade = self.reference.set_masquerade
        self.set_origins = self.reference.set_origins
        self.flush = self.reference.flush
        self.end_second_chances = self.reference.end_second_chances
        self.set_buckets = self.reference.set_buckets
        self.set_flow_key = self.reference.set_flow_key
        self.receive = self.reference.receive
        self.sweep = self.reference.sweep
        self.collect = self.reference.collect
        self.live_flows = self.reference.live_flows

    def counters(self) -> Mapping[tuple[Node, Reason], int]:
        return self.reference.counters

    def vip_counters(self) -> Mapping[VipKey, Mapping[VipCounter, int]]:
        return self.reference.vip_counters

    def pod_counters(self) -> Mapping[VipKey, Mapping[Pod, Mapping[PodCounter, int]]]:
        return self.reference.pod_counters

    def outcomes(self) -> Mapping[Outcome, int]:
        return self.reference.outcomes


def _without_zeros(counters: Mapping) -> dict:
    return {name: int(count) for name, count in counters.items() if count}


def _pods(counters: Mapping[VipKey, Mapping[Pod, Mapping[PodCounter, int]]]) -> dict:
    """Only pods that counted anything."""
    told = {
        (key, pod): _without_zeros(counts) for key, pods in counters.items() for pod, counts in pods.items()
    }
    return {place: counts for place, counts in told.items() if counts}


class ForwardingMachine(RuleBasedStateMachine):
    """Rules are what operators, clients, pods and time do."""

    make_plane: ClassVar[Callable[[Config], Plane]]

    @initialize(
        config=strategies.configs,
        now=strategies.start_times,
        first=st.lists(strategies.vips, min_size=4, max_size=12),
        burst=strategies.bursts,
    )
    def start(self, config: Config, now: int, first: list[Vip], burst: list[RefPacket]) -> None:
        self.now = now
        self.reference = Workers(**asdict(config))
        self.spread = Spread(config.workers)
        self.plane = type(self).make_plane(config)
        self.known: dict[VipKey, Vip] = {}
        self.sent: list[RefPacket] = []
        self.forwarded: list[bytes] = []
        self.restored: list[bytes] = []
        for each in (self.reference, self.plane):
            each.mark_interface(INSIDE, True, True)
        for vip in first:
            self._set_vip(vip)
        self.send(burst, together=True)

    # --------------------------------------------------------------------------------------------- operators

    def _set_vip(self, vip: Vip) -> None:
        try:
            self.reference.set_vip(vip)
        except ValueError as conflict:
            note(f"not set: {conflict}")  # refused above the data plane, which need not know
            return
        self.plane.set_vip(vip)
        self.known[vip.key] = vip

    @rule(vip=strategies.vips)
    def set_vip(self, vip: Vip) -> None:
        self._set_vip(vip)

    @precondition(lambda self: self.known)
    @rule(data=st.data())
    def change_pods(self, data: st.DataObject) -> None:
        self._change_pods(data, data.draw(st.sampled_from(list(self.known.values()))))
        self._receive(self.sent[-12:])  # whose flows drain now, or move

    def _change_pods(self, data: st.DataObject, vip: Vip) -> None:
        version = 4 if vip.type.pod_family == Family.IPV4 else 6
        change = data.draw(st.sampled_from(["remove one", "remove all", "others", "weigh", "split"]))
        drawn = strategies.pods[version, bool(vip.key.port) and vip.encap is Encap.NAT]
        pods, outside = vip.pods, vip.outside_pods
        if change == "remove one" and vip.all_pods:
            gone = data.draw(st.sampled_from(vip.all_pods))
            from_inside, from_outside = data.draw(st.sampled_from([(1, 1), (1, 0), (0, 1)]))
            pods = tuple(pod for pod in pods if pod != gone or not from_inside)
            if outside is not None:
                outside = tuple(pod for pod in outside if pod != gone or not from_outside)
        elif change == "remove all":
            pods, outside = (), data.draw(st.sampled_from([outside, None, () if outside else None]))
        elif change == "weigh":
            weights = {pod: data.draw(st.sampled_from([0, 1, 1, 3])) for pod in vip.all_pods}
            pods = tuple(pod.weighing(weights[pod]) for pod in pods)
            if outside is not None:
                outside = tuple(pod.weighing(weights[pod]) for pod in outside)
        elif change == "split" and vip.encap is Encap.NAT:
            pods = tuple(pod.weighing(1) for pod in pods)
            outside = data.draw(drawn)
        else:
            pods, outside = data.draw(drawn), None
        self._set_vip(replace(vip, pods=pods, outside_pods=outside))
        if vip.all_pods and change != "weigh" and data.draw(st.booleans()):
            gone = data.draw(st.sampled_from(vip.all_pods))
            for each in (self.reference, self.plane):
                each.flush(vip.key, gone.address)

    @precondition(lambda self: self.known)
    @rule(data=st.data(), again=st.booleans())
    def delete_vip(self, data: st.DataObject, again: bool) -> None:
        vip = data.draw(st.sampled_from(list(self.known.values())))
        del self.known[vip.key]
        self.reference.del_vip(vip.key)
        self.plane.del_vip(vip.key)
        if again:
            self._set_vip(vip)

    @rule(data=st.data())
    def configure(self, data: st.DataObject) -> None:
        what = data.draw(
            st.sampled_from(["buckets", "timeout", "state timeout", "interface", "masquerade", "origins", "flow hash"])
        )
        if what == "buckets":
            self._set_buckets(data.draw(st.sampled_from([1, 2, 4, 8, 64])))
        elif what == "flow hash":
            self._set_flow_key(data.draw(st.sampled_from(strategies.FLOW_KEYS)))
        elif what == "timeout":
            ticks = data.draw(st.sampled_from([5, 60, 400]))
            for each in (self.reference, self.plane):
                each.set_timeout(ticks)
        elif what == "state timeout":
            ticks = data.draw(st.sampled_from([2, 40, 500]))
            state = data.draw(st.sampled_from(list(FlowState)))
            for each in (self.reference, self.plane):
                each.set_timeout(ticks, state)
        elif what == "origins":
            origins = data.draw(st.sampled_from(strategies.ORIGINS))
            for each in (self.reference, self.plane):
                each.set_origins(*origins)
        elif what == "masquerade":
            addresses = data.draw(st.sampled_from(strategies.MASQUERADES))
            for each in (self.reference, self.plane):
                each.set_masquerade(addresses)
        else:
            nat4_in, nat6_in = data.draw(
                st.sampled_from([(True, True), (True, True), (True, False), (False, True)])
            )
            for each in (self.reference, self.plane):
                each.mark_interface(INSIDE, nat4_in, nat6_in)

    def _set_buckets(self, buckets: int) -> None:
        refused = []
        for each in (self.reference, self.plane):
            try:
                each.set_buckets(buckets, self.now)
            except ValueError:
                refused.append(each)
        assert len(refused) != 1, f"only {refused[0]} refuses {buckets} buckets"

    def _set_flow_key(self, key: bytes) -> None:
        refused = []
        for each in (self.reference, self.plane):
            try:
                each.set_flow_key(key, self.now)
            except ValueError:
                refused.append(each)
        assert len(refused) != 1, f"only {refused[0]} refuses the key {key.hex()}"

    # ---------------------------------------------------------------------------------------------- packets

    def _worker_of(self, packet: RefPacket) -> int:
        """From outside come clients' packets; from inside pods' replies, but for what is addressed to a VIP."""
        frame = packets.untagged(packet.data)
        about = parse(frame)
        if about is None:
            return 0
        to_vip = any(about.destination in key.prefix for key in self.known)
        return self.spread.worker_of(frame, packet.interface != INSIDE or to_vip, self.now / 10) or 0

    def _receive(self, vector: list[RefPacket]) -> None:
        workers = [self._worker_of(packet) for packet in vector]
        expected = self.reference.receive(vector, self.now, workers)
        results = self.plane.receive(vector, self.now, workers)
        note(f"{[(result.outcome.name, result.reason.name) for result in expected]}")
        assert len(results) == len(expected)
        for position, (result, wanted) in enumerate(zip(results, expected, strict=True)):
            assert result == wanted, f"packet {position} of {len(vector)}: {result} instead of {wanted}"
        for result in expected:
            if result.reason == Reason.FORWARDED:
                self.forwarded.append(result.data)
            elif result.reason == Reason.IN2OUT:
                self.restored.append(result.data)
        del self.forwarded[:-24]
        del self.restored[:-24]

    @rule(burst=strategies.bursts, together=st.booleans())
    def send(self, burst: list[RefPacket], together: bool) -> None:
        self.sent = (self.sent + burst)[-24:]
        for vector in [burst] if together else [[packet] for packet in burst]:
            self._receive(vector)

    @rule(burst=strategies.bursts)
    def converse(self, burst: list[RefPacket]) -> None:
        """Every pod answers at once."""
        self.forwarded.clear()
        self.send(burst, together=True)
        if self.forwarded:
            self._receive([RefPacket(packets.reply_to(one), INSIDE) for one in self.forwarded])

    @precondition(lambda self: self.sent)
    @rule(data=st.data())
    def send_again(self, data: st.DataObject) -> None:
        self._receive(data.draw(st.lists(st.sampled_from(self.sent), min_size=1, max_size=8)))

    @precondition(lambda self: self.forwarded)
    @rule(data=st.data(), interface=st.sampled_from([INSIDE] * 5 + [0]))
    def reply(self, data: st.DataObject, interface: int) -> None:
        chosen = data.draw(st.lists(st.sampled_from(self.forwarded), min_size=1, max_size=8))
        ttl = data.draw(strategies.reply_ttls)
        self._receive([RefPacket(packets.reply_to(one, ttl=ttl), interface) for one in chosen])

    @precondition(lambda self: self.forwarded or self.restored)
    @rule(seed=st.integers(0, 2**32))
    def complain(self, seed: int) -> None:
        """Routers and receivers about what was sent to them."""
        rng = Random(seed)
        about = [rng.choice(self.forwarded + self.restored) for _ in range(rng.choice([1, 4]))]
        self._receive([strategies.make_complaint(rng, each) for each in about])

    @precondition(lambda self: self.known)
    @rule(data=st.data(), seed=st.integers(0, 2**48 - 1), turns=st.integers(1, 3))
    def come_from_elsewhere(self, data: st.DataObject, seed: int, turns: int) -> None:
        """Connections that began elsewhere come just after a change; pods that do not know them refuse them."""
        rng = Random(seed)
        vip = data.draw(st.sampled_from(list(self.known.values())))
        for _ in range(turns):
            self._change_pods(data, vip)
            vip = self.known[vip.key]
            segments = strategies.make_segments(rng, vip)
            for _ in range(2):
                self.forwarded.clear()
                self._receive(segments)
                if self.forwarded:
                    self._receive([RefPacket(strategies.make_answer(rng, one), INSIDE) for one in self.forwarded])

    # ------------------------------------------------------------------------------------------------- time

    @rule(ticks=strategies.durations)
    def wait(self, ticks: int) -> None:
        self.now = (self.now + ticks) % 2**32

    @rule(what=st.sampled_from(["sweep", "collect", "end second chances"]))
    def housework(self, what: str) -> None:
        for each in (self.reference, self.plane):
            if what == "sweep":
                each.sweep(self.now)
            elif what == "end second chances":
                each.end_second_chances()
            else:
                each.collect(self.now)

    # ------------------------------------------------------------------------------------------ what is seen

    @invariant()
    def same_to_see(self) -> None:
        reference, plane = self.reference, self.plane
        assert _without_zeros(plane.counters()) == _without_zeros(reference.counters)
        assert _without_zeros(plane.outcomes()) == _without_zeros(reference.outcomes)
        theirs = {key: _without_zeros(counters) for key, counters in plane.vip_counters().items()}
        ours = {key: _without_zeros(counters) for key, counters in reference.vip_counters.items()}
        assert theirs == ours, f"plane {theirs}, reference {ours}"
        mine, his = _pods(reference.pod_counters), _pods(plane.pod_counters())
        assert mine == his, f"reference {mine}, plane {his}"
        ours, theirs = set(reference.live_flows(self.now)), set(plane.live_flows(self.now))
        assert ours == theirs, f"only the reference has {ours - theirs}, only the plane {theirs - ours}"

    @invariant()
    def every_packet_has_an_outcome(self) -> None:
        assert sum(self.reference.outcomes.values()) == self.reference.received

    @invariant()
    def every_reply_tells_its_flow(self) -> None:
        direct = {key for key, vip in self.known.items() if vip.encap is not Encap.NAT}
        for number, worker in enumerate(self.reference.workers):
            flows = [flow for flow in worker.live_flows(self.now) if flow.vip not in direct]
            replies = {
                (flow.pod, flow.pod_port, flow.source, flow.source_port, flow.protocol) for flow in flows
            }
            assert len(replies) == len(flows)
            for flow in flows:
                if has_chosen_source(flow):
                    came_to = worker_of(
                        flow.source, flow.source_port, flow.protocol, len(self.reference.workers)
                    )
                    assert came_to == number, f"worker {number} gets no replies of {flow}"


def has_chosen_source(flow: LiveFlow) -> bool:
    """Does the pod see a source that a worker has chosen? The NAT46 prefix leaves no choice."""
    if flow.client.version != flow.source.version:
        return flow.client.version == 6
    return (flow.client, flow.client_port) != (flow.source, flow.source_port)


def machine_for(make_plane: Callable[[Config], Plane]) -> type[ForwardingMachine]:
    """A machine that compares this plane with the reference."""
    # staticmethod: a plain function would become a method of the machine
    return type("ForwardingMachine", (ForwardingMachine,), {"make_plane": staticmethod(make_plane)})
