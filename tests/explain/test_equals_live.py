"""Explained is what happens: over random configurations, traffic and flow tables, packet by packet.

Each packet is explained first and sent then.  The explanation must name the outcome, the reason, the VIP, the pod and
every byte of what the live path does; and asking must leave no trace, so that the flows, counters and pods of a plane
that is asked are those of the reference, which is not.
"""

from __future__ import annotations

import os
from dataclasses import replace
from random import Random

import pytest

from differential import strategies
from differential.plane import CompiledPlane
from differential.strategies import INSIDE, Config
from kuproxy.codes import Family, Outcome, Reason
from kuproxy.engine.packets import PacketIn
from kuproxy.errors import ConfigError
from kuproxy.explain.explain import explain
from kuproxy.explain.report import Explanation
from kuproxy.model.vip import Vip, address_text
from kuproxy.reference import RefPacket, Result
from packets import reply_to

FEW = int(os.environ.get("KUPROXY_EXPLAINED", "3000"))
MANY = 1_000_000


def random_config(rng: Random) -> Config:
    """As `strategies.configs`, from a seed; one worker, because `receive` is told whose each packet is."""
    return Config(
        buckets=rng.choice([1, 2, 4, 64]),
        timeout_ticks=rng.choice([5, 60, 400]),
        decrement_ttl=rng.random() < 0.5,
        any_node_address=rng.random() < 0.5,
        reject_rate=rng.choice([1000, 3, 0]),
        ip4_src_address=rng.choice([strategies.TUNNEL_SOURCES[0], None]),
        ip6_src_address=rng.choice([strategies.TUNNEL_SOURCES[1], None]),
        masquerade=rng.choice(strategies.MASQUERADES),
        nat64_ports=rng.choice([(1024, 65535), (7, 8)]),
        translation_mtu=rng.choice([0, 1280, 1500]),
        pod_ranges=strategies.POD_RANGES,
        all_node_addresses=strategies.ALL_NODE_ADDRESSES,
        own_addresses=rng.choice(
            [{}, dict(zip((Family.IPV4, Family.IPV6), strategies.NODE_ADDRESSES, strict=True))]
        ),
        workers=rng.choice([1, 1, 2]),
    )


class AskedPlane:
    """A compiled plane in the shape that `explain` wants of its owner."""

    def __init__(self, config: Config) -> None:
        self.made = CompiledPlane(config)
        self.engine, self.compiler = self.made.engine, self.made.compiler

    @staticmethod
    def place_of_replies(_pod: object, _client: object) -> str:
        return "anywhere: nothing is steered here"


def agree(told: Explanation, result: Result, names: dict) -> list[str]:
    """What an explanation and the live path say differently."""
    faults = []
    if told.outcome != result.outcome.name.lower() or told.reason != result.reason.name:
        faults.append(f"{told.outcome} {told.reason}, live {result.outcome.name} {result.reason.name}")
    if result.outcome in (Outcome.TRANSMIT, Outcome.PASS) and told.sent != result.data.hex():
        faults.append(f"sent {told.sent}, live {result.data.hex()}")
    if told.vip != (None if result.vip is None else str(result.vip)):
        faults.append(f"VIP {told.vip}, live {result.vip}")
    address = None if told.pod is None else told.pod
    expected = None if result.pod is None else str(result.pod)
    if (address is None) != (expected is None) or (
        expected is not None and address not in names.get(expected, (expected,))
    ):
        faults.append(f"pod {told.pod}, live {result.pod}")
    return faults


def pod_names(plane: AskedPlane) -> dict[str, set[str]]:
    """By address, how pods with it are spelled."""
    names: dict[str, set[str]] = {}
    for record in plane.compiler.records():
        for pod in (*record.pods, *record.draining, *record.flushed.values()):
            names.setdefault(str(pod.address), set()).add(address_text(pod.address, pod.port))
    return names


def consistent(told: Explanation) -> list[str]:
    """What an explanation says of itself must fit together."""
    faults = []
    chosen = [each for each in told.candidates if each.verdict == "chosen"]
    # An ICMP error or a reply belongs to the VIP of its flow, whatever its own destination.
    by_flow = any(step.node == "kp-icmp-error" or "in2out" in step.node for step in told.steps)
    if told.vip is not None and not by_flow and [each.vip for each in chosen] != [told.vip]:
        faults.append(f"chosen {chosen}, VIP {told.vip}")
    if told.event == "EXISTING_SESSION" and not (told.flow is not None and told.flow.known):
        faults.append("an existing session that the bucket does not show")
    if told.event == "FIRST_PACKET" and told.affinity is None and told.ring is not None:
        clash = any("passed over" in line for step in told.steps for line in step.what)
        if not clash and told.ring.owner != told.pod:
            faults.append(f"slot {told.ring.slot} is {told.ring.owner}'s, pod {told.pod}")
    if told.event == "FIRST_PACKET" and not any(each.chosen for each in told.endpoints):
        faults.append(f"pod {told.pod} is none of the endpoints")
    if any(each.chosen and not each.serves for each in told.endpoints) and told.event == "FIRST_PACKET":
        faults.append(f"a new flow at {told.pod}, which does not serve")
    return faults


def memory_of(plane: AskedPlane) -> list[bytes]:
    """What a packet writes first: header, counters by node, the flow table, fragments."""
    return [
        getattr(state, name).tobytes()
        for state in plane.engine.states
        for name in ("header", "counters", "entries", "flows", "reverse", "fragments", "held")
    ]


def one_life(seed: int, packets_wanted: int) -> int:
    """A configuration, its VIPs and traffic; returns how many packets were explained."""
    rng = Random(seed)
    config = random_config(rng)
    plane = AskedPlane(config)
    now = rng.choice([100, 2**31 - 60, 2**32 - 60])
    known: dict = {}
    plane.made.mark_interface(INSIDE, True, True)
    done = 0
    sent: list[RefPacket] = []
    forwarded: list[bytes] = []

    def set_vip(vip: Vip) -> None:
        try:
            plane.made.set_vip(vip)
            known[vip.key] = vip
        except ConfigError:
            pass  # another VIP has its node port

    for _ in range(rng.randrange(4, 12)):
        set_vip(strategies.make_vip(rng))
    while done < packets_wanted:
        kind = rng.randrange(12)
        if kind == 0:
            set_vip(strategies.make_vip(rng))
        elif kind == 1 and known:
            vip = rng.choice(list(known.values()))
            pods = strategies.make_pods(rng, int(vip.type.pod_family), bool(vip.key.port) and not vip.encap)
            set_vip(replace(vip, pods=pods, outside_pods=None))
        elif kind == 2:
            now = (now + rng.choice([1, 4, 50, 61, 401])) % 2**32
        elif kind == 3:
            plane.made.collect(now)
        burst = strategies.make_packets(rng)
        if sent and kind in (4, 5):
            burst = [rng.choice(sent)]
        elif forwarded and kind in (6, 7):
            burst = [RefPacket(reply_to(rng.choice(forwarded)), INSIDE)]
        for packet in burst[:12]:
            worker = rng.randrange(config.workers)
            asked = PacketIn(
                packet.data, packet.interface, packet.partial_checksum, packet.gso, min(packet.room, 16320)
            )
            before = memory_of(plane)
            told = explain(plane, asked, now, worker=worker)
            assert memory_of(plane) == before, "asking has left a trace"
            result = plane.made.receive([packet], now, [worker])[0]
            faults = agree(told, result, pod_names(plane)) + consistent(told)
            assert not faults, f"seed {seed}, packet {done}, {packet.data.hex()}: {faults}"
            if result.reason == Reason.FORWARDED:
                forwarded = [*forwarded[-23:], result.data]
            done += 1
        sent = (sent + burst)[-24:]
    plane.made.close()
    return done


@pytest.mark.parametrize("seed", range(10))
def test_what_is_explained_is_what_happens(seed: int) -> None:
    assert one_life(seed, FEW // 10) >= FEW // 10


@pytest.mark.long
@pytest.mark.timeout(6 * 3600)
def test_a_million_packets() -> None:
    rng = Random(os.environ.get("KUPROXY_SEED", "explain"))
    done = 0
    while done < MANY:
        done += one_life(rng.randrange(2**48), 1000)
