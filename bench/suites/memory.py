"""Bytes: of a flow, a VIP, a pod and a ring slot, by layout and as the kernel sees them."""

import gc

from bench import traffic
from bench.harness import Case, Count, Sample, Scale
from bench.machine import rss_bytes
from bench.suites.graph import count_name, fitting_log2
from bench.world import World, make_vip, many_vips
from kuproxy.dataplane.layout import ENTRY, FLOW, MATCH, POD, REVERSE, REVERSE_WAYS, VIP, WAYS, W_FLOWS


def _layout() -> Sample:
    return {
        "flow": ENTRY.itemsize + FLOW.itemsize + REVERSE.itemsize * REVERSE_WAYS // WAYS,
        "VIP": VIP.itemsize,
        "VIP's counters, per worker": 64,
        "pod": POD.itemsize,
        "ring slot": 4,
        "match entry": MATCH.itemsize,
    }


def _flows(flows: int, log2: int) -> Sample:
    """Shared memory that a table takes once these flows are in it, in random buckets."""
    world = World(log2, [make_vip(4, 1, range(1, 65), 1024)])
    gc.collect()
    before = rss_bytes("RssShmem")
    world.drive(traffic.udp_rows(4, flows), flows)
    used = rss_bytes("RssShmem") - before
    tracked = int(world.engine.state.header[W_FLOWS])
    return {"resident": used, "resident per flow": used / max(1, tracked), "flows tracked": tracked}


def _vips(vips: int) -> Sample:
    """Resident memory of a control process with these VIPs: tables, and the records behind them."""
    gc.collect()
    shared, private = rss_bytes("RssShmem"), rss_bytes("RssAnon")
    world = World(0, many_vips(vips))
    gc.collect()
    used = {"tables": rss_bytes("RssShmem") - shared, "records": rss_bytes("RssAnon") - private}
    assert len(world.store) == vips
    return {**used, "tables per VIP": used["tables"] / vips, "records per VIP": used["records"] / vips}


def cases(scale: Scale) -> list[Case]:
    """By layout; flows that half fill, and nearly fill, their table; VIPs with four pods each."""
    found: list[Case] = [Count("memory-layout", "bytes", _layout)]
    for flows in scale.flows:
        for log2 in (fitting_log2(flows), fitting_log2(flows) - 1):
            name = f"memory-{count_name(flows)}flow-2e{log2}bucket"
            found.append(Count(name, "bytes", lambda f=flows, b=log2: _flows(f, b)))
    vips = scale.most_vips
    found.append(Count(f"memory-{count_name(vips)}vip-4pod", "bytes", lambda: _vips(vips)))
    return found
