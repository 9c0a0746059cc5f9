"""Control: loading many VIPs, changing one among many, and whether memory stays flat under adding and deleting."""

import gc
import time

from bench.harness import Case, Count, Sample, Scale
from bench.machine import rss_bytes
from bench.suites.graph import count_name
from bench.world import World, make_vip, many_vips

PODS_EACH = 4
RING = 16


class LoadCase(Case):
    """Store.replace and Compiler.apply of all VIPs at once into empty tables, then of the change of one VIP."""

    unit = "ms"

    def __init__(self, vips: int):
        super().__init__(f"control-{count_name(vips)}vip-{PODS_EACH}pod-load", f"ring {RING}")
        self._vips = vips

    def rounds(self, scale: Scale) -> int:
        return min(scale.rounds, 3 if self._vips >= 100_000 else 7)

    def prepare(self) -> None:
        self._wanted = list(many_vips(self._vips, PODS_EACH, RING))

    def sample(self) -> Sample:
        world = World(0, [])
        times = [time.perf_counter()]
        changes = world.store.replace("bench", self._wanted)
        times.append(time.perf_counter())
        world.compiler.apply(changes)
        times.append(time.perf_counter())
        # The pods of VIP 1 but one: what a rolling update sends.
        fewer = make_vip(4, 1, range(PODS_EACH, 2 * PODS_EACH - 1), RING)
        world.compiler.apply(world.store.update("bench", add=[fewer]))
        times.append(time.perf_counter())
        store, apply, change = ((b - a) * 1e3 for a, b in zip(times, times[1:], strict=False))
        return {"store": store, "apply": apply, "store and apply": store + apply, "change of one VIP": change}


def _cycles(count: int) -> Sample:
    """Add and delete the same VIP with a node port, many times; memory and what is in use after."""
    world = World(4, [])
    vip = make_vip(4, 1, range(1, 65), 1024)
    empty = world.compiler.in_use()

    def cycle(times: int) -> float:
        begin = time.perf_counter()
        for _ in range(times):
            world.compiler.apply(world.store.replace("bench", [vip]))
            world.compiler.apply(world.store.replace("bench", []))
            world.collect()
        return (time.perf_counter() - begin) / times * 1e6

    cycle(max(1, count // 10))  # the first ones load code and fill Python's free lists
    gc.collect()
    before = rss_bytes()
    each = cycle(count)
    gc.collect()
    left = sum(value - empty[name] for name, value in world.compiler.in_use().items())
    return {"resident growth in bytes": rss_bytes() - before, "entries left behind": left, "us per cycle": each}


def cases(scale: Scale) -> list[Case]:
    """Loads by powers of ten, then the cycles."""
    loads: list[Case] = [LoadCase(n) for n in (1000, 10_000, 100_000) if n <= scale.most_vips] or [
        LoadCase(scale.most_vips)
    ]
    name = f"control-{count_name(scale.cycles)}cycle-1vip-64pod-add-delete"
    return [*loads, Count(name, "see metric", lambda: _cycles(scale.cycles))]
