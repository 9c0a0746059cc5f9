"""`python -m bench.digest SEED PODS SLOTS`: digest of a table whose pods came in a shuffled order, a few at a time."""

import hashlib
import random
import sys
from dataclasses import replace

from bench.world import World, make_vip


def digest(seed: int, pods: int, slots: int) -> str:
    """Of the addresses in the published ring, slot by slot."""
    whole = make_vip(4, 1, range(1, pods + 1), slots)
    order = list(whole.pods)
    random.Random(seed).shuffle(order)
    world = World(0, [])
    step = max(1, pods // 7)
    for end in [*range(step, pods, step), pods]:
        world.publish([replace(whole, pods=tuple(order[:end]))])
        world.collect()
    tables = world.engine.tables
    record = world.compiler.record(whole.key)
    assert record is not None
    offset = int(tables.vips[record.index]["ring"]) >> 8
    owners = tables.rings[offset : offset + slots]
    return hashlib.blake2b(tables.pods[owners]["lo"].tobytes(), digest_size=8).hexdigest()


if __name__ == "__main__":
    print(digest(*map(int, sys.argv[1:4])))
