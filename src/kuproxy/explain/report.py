"""What an explanation says, as plain values: one record for text, JSON, pictures and the API.

Addresses and VIPs are texts in the spelling of the command language, so that nothing has to be translated twice.
"""

from __future__ import annotations

import msgspec

__all__ = [
    "Affinity",
    "Candidate",
    "Counterfactual",
    "EndpointVerdict",
    "Explanation",
    "FlowFacts",
    "PacketFacts",
    "Rewrite",
    "RingFacts",
    "Step",
    "Way",
]


class Told(msgspec.Struct, kw_only=True):
    """Base of everything that an explanation holds."""


class PacketFacts(Told):
    """What kp-input read; family 0: the packet was not understood, and then no other field counts."""

    family: int
    protocol: int
    source: str
    source_port: int
    destination: str
    destination_port: int
    bytes: int
    fragment: bool
    interface: int
    hash: int
    worker: int  # that steering gives it to


class Candidate(Told):
    """A VIP whose prefix, or whose node port, the destination fits."""

    vip: str
    owner: str
    verdict: str  # "chosen", "lost" or "other"
    rule: str  # why, in a sentence


class Way(Told):
    """One place of the flow's bucket."""

    slot: int
    live: bool
    own: bool  # it is this packet's flow
    flow: str = ""  # `tcp 40.0.0.1:1024 -> 90.0.0.1:80 at 10.0.0.1:8080`
    state: str = ""
    expires_in_s: float = 0.0


class FlowFacts(Told):
    """The flow table as it was before the packet."""

    known: bool
    bucket: int
    ways: list[Way]
    pod: str | None = None  # of the packet's own flow
    state: str | None = None
    otherwise: str | None = None  # the pod that the flow moves to if `pod`, which may not know it, refuses it
    age_s: float = 0.0
    expires_in_s: float = 0.0


class RingFacts(Told):
    """The new-flow table's slot for this packet; it decides for new flows alone."""

    slots: int
    slot: int
    owner: str
    by: str  # "flow": the flow's hash chose the slot; "source": that of the client's address
    origin: str  # whose ring: "pod", "node", "outside"
    before: str | None  # owner before the last change of the VIP's pods; null: not known
    compared: bool  # whether there is a former ring of this size
    # The pod that a TCP connection from elsewhere gets if the owner refuses it; null: no other than the owner.
    second_chance: str | None = None


class Affinity(Told):
    """ClientIP affinity of the VIP, and whom this client had."""

    seconds: float
    pod: str | None


class EndpointVerdict(Told):
    """One endpoint, whether it gets new flows of this client, and by which rule."""

    pod: str
    serves: bool
    rule: str
    slots: int  # of the ring that this client's flows meet
    chosen: bool


class Step(Told):
    """A node that the packet met, and what it did there."""

    node: str
    what: list[str]


class Rewrite(Told):
    """A field of the packet that changed; `old` null: it is new, `new` null: it is gone.  Hexadecimal bytes."""

    layer: str
    field: str
    offset_before: int | None
    offset_after: int | None
    old: str | None
    new: str | None
    old_text: str = ""
    new_text: str = ""


class Counterfactual(Told):
    """What would be, if the configuration were another."""

    changes: list[str]  # what was asked for
    differences: list[str]  # from what is; empty: the packet would not notice
    outcome: str
    reason: str
    pod: str | None
    ring: RingFacts | None
    endpoints: list[EndpointVerdict]
    sent: str | None


class Explanation(Told):
    """Everything about one packet, at one moment."""

    packet: PacketFacts
    candidates: list[Candidate]
    vip: str | None
    owner: str | None
    service: str | None  # how its policies and endpoints were read; null: no Service is behind the VIP
    endpoints: list[EndpointVerdict]
    affinity: Affinity | None
    flow: FlowFacts | None
    ring: RingFacts | None
    steps: list[Step]
    comes_up: str  # of what a pod may answer: where that has to come in, in words; else empty
    event: str  # how kp-balance came by the pod: FIRST_PACKET, EXISTING_SESSION, UNTRACKED, NONE
    pod: str | None
    outcome: str
    reason: str
    sentence: str  # the reason in words
    rewrites: list[Rewrite]
    sent: str | None  # the frame as it leaves, hexadecimal; null: it does not
    pieces: list[str]  # further frames, where it had to be cut
    what_if: Counterfactual | None = None
