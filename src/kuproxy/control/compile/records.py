"""What the compiler remembers of the places that it has given out."""

from dataclasses import dataclass, field

from kuproxy.model.vip import Pod, Vip


@dataclass(slots=True)
class Ring:
    offset: int
    log2: int


@dataclass(slots=True)
class Block:
    """A block of source ranges."""

    offset: int
    log2: int


@dataclass(slots=True)
class VipRecord:
    """A VIP's places in the tables."""

    index: int
    vip: Vip
    pods: dict[Pod, int] = field(default_factory=dict)  # in the ring; Pod with its port resolved
    draining: dict[Pod, int] = field(default_factory=dict)
    flushed: dict[int, Pod] = field(default_factory=dict)  # removed, by index; their flows end
    ring: Ring | None = None
    ranges: Block | None = None
    removed: bool = False


@dataclass(slots=True)
class Draining:
    record: VipRecord
    pod: Pod
    generation: int
