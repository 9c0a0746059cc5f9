"""The table of established flows, with its limits: they decide which flows are tracked.

A bucket holds 4 flows, found by the hash of the client's packets; a line of the reverse index holds 8, found by the
hash of the pod's replies.  Flows that are no longer alive take no room.  Which of the places a flow gets makes no
difference to anyone, so here a bucket and a line are just lists.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from kuproxy.codes import Encap
from kuproxy.model.vip import Address, Pod
from kuproxy.reference.life import Life
from kuproxy.reference.packet import Endpoints
from kuproxy.reference.translate import other_protocol
from kuproxy.reference.vips import VipState

WAYS = 4
HALF_OPEN_WAYS = 2  # of a bucket: what a flood of first packets can fill
REVERSE_WAYS = 8

TICK_MASK = 0xFFFFFFFF


def is_live(expires: int, now: int) -> bool:
    """Not yet expired, on a clock of 32 bits that wraps."""
    return 0 < (expires - now) & TICK_MASK < 1 << 31


@dataclass(eq=False)
class Flow:
    """A client that was given to a pod. `vip` is one life of a VIP: made again under the same key, it is another."""

    forward: Endpoints  # as the client writes it
    vip: VipState
    pod: Pod
    pod_port: int  # kept for the flow's life, whatever becomes of the VIP's target port
    source: Address  # what the pod sees
    source_port: int
    created: int
    expires: int = 0
    life: Life = field(default_factory=Life)
    masqueraded: bool = False  # the source is the masquerade address, even if the client has just that
    flushed: bool = False  # its pod was removed, and shall not serve its flows any longer
    tentative: bool = False  # its pod may not know the connection, and has said nothing yet
    reply: Endpoints = field(init=False)  # as the pod writes it

    def __post_init__(self) -> None:
        self.reply = reply_of(self.forward, self.pod, self.pod_port, self.source, self.source_port)

    @property
    def is_direct(self) -> bool:
        """Direct return: its replies do not come by."""
        return self.vip.vip.encap is not Encap.NAT

    @property
    def is_translated(self) -> bool:
        return self.masqueraded or (self.source, self.source_port) != (
            self.forward.source,
            self.forward.source_port,
        )

    @property
    def is_crossing(self) -> bool:
        """Its pod is of the other family. What stands for its client there stands for nobody else."""
        return self.source.version != self.forward.source.version

    def line_hash(self, key: bytes) -> int:
        """Where the reply is looked for; 0 if it does not come by."""
        return 0 if self.is_direct else self.reply.hash(key)

    def is_live(self, now: int) -> bool:
        return not self.vip.deleted and is_live(self.expires, now)


def reply_of(forward: Endpoints, pod: Pod, pod_port: int, source: Address, source_port: int) -> Endpoints:
    """What this pod would answer to that client, if it sees it as `source`."""
    protocol = forward.protocol
    if source.version != forward.source.version:
        protocol = other_protocol(protocol)
    return Endpoints(pod.address, pod_port, source, source_port, protocol)


class FlowTable:
    """Flows by bucket and by reverse line; `buckets` is a power of two, `key` that of a keyed flow hash."""

    def __init__(self, buckets: int, key: bytes = b""):
        if buckets <= 0 or buckets & (buckets - 1):
            raise ValueError(f"{buckets} buckets: not a power of two")
        self.buckets = buckets
        self.key = key
        self._forward: defaultdict[int, list[Flow]] = defaultdict(list)
        self._reverse: defaultdict[int, list[Flow]] = defaultdict(list)

    def _bucket(self, forward: Endpoints, now: int) -> list[Flow]:
        return _without_dead(self._forward, forward.hash(self.key) & (self.buckets - 1), now)

    def _line(self, reply: Endpoints, now: int) -> list[Flow]:
        return _without_dead(self._reverse, reply.hash(self.key) & (self.buckets - 1), now)

    def find(self, forward: Endpoints, vip: VipState, now: int) -> Flow | None:
        """The live flow of this client through this life of this VIP."""
        for flow in self._bucket(forward, now):
            if flow.forward == forward and flow.vip is vip:
                return flow
        return None

    def count(self, vip: VipState, now: int) -> int:
        """Live flows of a VIP."""
        return sum(flow.vip is vip for flow in self.live(now))

    def find_reply(self, reply: Endpoints, now: int, *, crossing: bool = False) -> Flow | None:
        """The live flow, if any, that this packet of a pod is the reply of: there is never more than one.

        A client that gives itself an address which stands for one of the other family gets no replies, and is in
        nobody's way: flows between the families are looked for among themselves.
        """
        for flow in self._line(reply, now):
            if flow.reply == reply and flow.is_crossing == crossing:
                return flow
        return None

    def bucket_is_full(self, forward: Endpoints, now: int) -> bool:
        return len(self._bucket(forward, now)) >= WAYS

    def to_give_way(self, forward: Endpoints, half_open: bool, now: int) -> Flow | None:
        """The half-open flow whose place a new flow takes, because it may not or cannot have one of its own."""
        waiting = [flow for flow in self._bucket(forward, now) if flow.life.is_half_open]
        if not waiting:
            return None
        if self.bucket_is_full(forward, now) or (half_open and len(waiting) >= HALF_OPEN_WAYS):
            # The oldest; of one age, any rule that all share.
            return min(
                waiting,
                key=lambda flow: (
                    -((now - flow.created) & TICK_MASK),
                    flow.forward.hash(self.key),
                    flow.line_hash(self.key),
                ),
            )
        return None

    def remove(self, flow: Flow, now: int) -> None:
        self._bucket(flow.forward, now).remove(flow)
        if not flow.is_direct:
            self._line(flow.reply, now).remove(flow)

    def move(self, flow: Flow, pod: Pod, pod_port: int, source: Address, source_port: int, now: int) -> None:
        """Let it be a flow to another pod. There must be room in the line of its reply, which no live flow has."""
        self._line(flow.reply, now).remove(flow)
        flow.pod, flow.pod_port, flow.source, flow.source_port = pod, pod_port, source, source_port
        flow.reply = reply_of(flow.forward, pod, pod_port, source, source_port)
        self._line(flow.reply, now).append(flow)

    def flush(self, pod: Pod, vip: VipState) -> None:
        """The flows of this pod of this VIP end with their next packet."""
        for bucket in self._forward.values():
            for flow in bucket:
                if flow.vip is vip and flow.pod == pod:
                    flow.flushed = True

    def line_is_full(self, reply: Endpoints, now: int) -> bool:
        return len(self._line(reply, now)) >= REVERSE_WAYS

    def enter(self, flow: Flow, now: int) -> None:
        """There must be room in both directions, and no other live flow with the same reply."""
        assert not self.bucket_is_full(flow.forward, now)
        if not flow.is_direct:
            assert not self.line_is_full(flow.reply, now)
            assert self.find_reply(flow.reply, now, crossing=flow.is_crossing) is None
        self._bucket(flow.forward, now).append(flow)
        if not flow.is_direct:
            self._line(flow.reply, now).append(flow)

    def live(self, now: int) -> list[Flow]:
        return [flow for bucket in self._forward.values() for flow in bucket if flow.is_live(now)]

    def resized(self, buckets: int, key: bytes, now: int) -> FlowTable:
        """The live flows in a table of another size, or found by another hash.

        Raises ValueError if some bucket or line overflows.
        """
        table = FlowTable(buckets, key)
        for flow in self.live(now):
            direct = flow.vip.vip.encap is not Encap.NAT
            full = table.bucket_is_full(flow.forward, now)
            if full or (not direct and table.line_is_full(flow.reply, now)):
                raise ValueError(f"{buckets} buckets do not hold the {len(self.live(now))} live flows")
            table.enter(flow, now)
        return table

    def forget_dead(self, now: int) -> None:
        for table in (self._forward, self._reverse):
            for index in list(table):
                if not _without_dead(table, index, now):
                    del table[index]


def _without_dead(table: defaultdict[int, list[Flow]], index: int, now: int) -> list[Flow]:
    """The list at `index`, after the dead were struck off it: none of them comes alive again."""
    table[index] = [flow for flow in table[index] if flow.is_live(now)]
    return table[index]
