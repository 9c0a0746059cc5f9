"""Control: loading many VIPs, changing one among many, and whether memory stays flat under adding and deleting."""

import functools
import gc
import itertools
import time
from dataclasses import replace

from bench.harness import Apart, Case, Sample, Scale
from bench.machine import rss_bytes
from bench.suites.graph import count_name
from bench.world import World, make_vip, many_vips

RING = 16
# VIPs, and pods of each: 10 where kube-proxy was measured with 10, and as many as the tables hold.
LOADS = ((1000, 10), (10_000, 10), (100_000, 1))


class LoadCase(Case):
    """Store.replace and Compiler.apply of all VIPs at once into empty tables, then of the change of one VIP."""

    unit = "ms"

    def __init__(self, vips: int, pods_each: int):
        super().__init__(f"control-{count_name(vips)}vip-{pods_each}pod-load", f"ring {RING}")
        self._vips, self._pods_each = vips, pods_each

    def rounds(self, scale: Scale) -> int:
        return min(scale.rounds, 3 if self._vips >= 100_000 else 7)

    def prepare(self) -> None:
        self._wanted = list(many_vips(self._vips, self._pods_each, RING))

    def sample(self) -> Sample:
        world = World(0, [])
        times = [time.thread_time()]
        changes = world.store.replace("bench", self._wanted)
        times.append(time.thread_time())
        world.compiler.apply(changes)
        times.append(time.thread_time())
        # One pod of VIP 1 gives way to another: what a rolling update sends.
        others = make_vip(4, 1, range(self._pods_each + 1, 2 * self._pods_each + 1), RING)
        world.compiler.apply(world.store.update("bench", add=[others]))
        times.append(time.thread_time())
        store, apply, change = ((b - a) * 1e3 for a, b in itertools.pairwise(times))
        return {"store": store, "apply": apply, "store and apply": store + apply, "change of one VIP": change}


def _cycles(count: int) -> Sample:
    """Add and delete the same VIP with a node port, many times; memory and what is in use after."""
    world = World(4, [])
    vip = replace(make_vip(4, 1, range(1, 65), 1024), node_port=30_000)
    empty = world.compiler.in_use()

    def cycle(times: int) -> float:
        begin = time.thread_time()
        for _ in range(times):
            world.compiler.apply(world.store.replace("bench", [vip]))
            world.compiler.apply(world.store.replace("bench", []))
            world.collect()
        return (time.thread_time() - begin) / times * 1e6

    cycle(max(1, count // 10))  # the first ones load code and fill Python's free lists
    gc.collect()
    before = rss_bytes()
    each = cycle(count)
    gc.collect()
    left = sum(value - empty[name] for name, value in world.compiler.in_use().items())
    return {"resident growth": rss_bytes() - before, "entries left behind": left, "time of a cycle": each}


def cases(scale: Scale) -> list[Case]:
    """Loads by powers of ten, then the cycles."""
    sizes = [load for load in LOADS if load[0] <= scale.most_vips] or [(scale.most_vips, 10)]
    loads: list[Case] = [LoadCase(*size) for size in sizes]
    name = f"control-{count_name(scale.cycles)}cycle-1vip-64pod-add-delete"
    units = {"entries left behind": "entries", "time of a cycle": "us"}
    return [*loads, Apart(name, functools.partial(_cycles, scale.cycles), "bytes", units)]
