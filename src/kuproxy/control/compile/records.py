"""What the compiler remembers of the places that it has given out."""

from dataclasses import dataclass, field

from kuproxy.control.compile.members import Members
from kuproxy.control.places import Places
from kuproxy.dataplane.layout import RING_FORMER, RING_SPLIT
from kuproxy.model.vip import Pod, Vip


@dataclass(slots=True)
class Ring:
    """The block of a VIP's ring, or of its two, the inside's first; behind, perhaps, those before the last change."""

    offset: int
    log2: int  # of each ring
    kind: int = 0  # RING_INSIDE and RING_OUTSIDE, as in VIP["ring"]
    former: bool = False  # for second chances

    @property
    def present_log2(self) -> int:
        """Of the slots that new flows use."""
        return self.log2 + (self.kind == RING_SPLIT)

    @property
    def block_log2(self) -> int:
        return self.present_log2 + self.former

    @property
    def word(self) -> int:
        """VIP["ring"]."""
        return self.offset << 8 | self.kind | (RING_FORMER if self.former else 0) | self.log2


@dataclass(slots=True)
class Block:
    """A block of prefixes."""

    offset: int
    log2: int


@dataclass(slots=True)
class VipRecord:
    """A VIP's places in the tables."""

    index: int
    vip: Vip
    pods: Places = field(default_factory=Places)  # in a ring
    draining: dict[Pod, int] = field(default_factory=dict)
    flushed: dict[int, Pod] = field(default_factory=dict)  # removed, by index; their flows end
    ring: Ring | None = None
    former_pods: frozenset[int] = frozenset()  # indices in the former rings: they may be given flows again
    members: Members | None = None  # of the ring, where they are many and alike
    ranges: Block | None = None
    node_port: int = 0  # that is entered
    removed: bool = False

    def pod_at(self, index: int) -> Pod | None:
        """The pod with this index, removed or not; None: it is none of this VIP's."""
        for places in (self.pods, self.draining):
            for pod, place in places.items():
                if place == index:
                    return pod
        return self.flushed.get(index)


@dataclass(slots=True)
class Draining:
    record: VipRecord
    pod: Pod
    generation: int
