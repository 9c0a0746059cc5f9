"""Bytes: of a flow, a VIP, a pod and a ring slot, by layout and as the kernel sees them."""

import functools
import gc

from bench import traffic
from bench.harness import Apart, Case, Sample, Scale
from bench.machine import rss_bytes
from bench.suites.graph import count_name, fitting_log2
from bench.world import World, make_vip, many_vips
from kuproxy.dataplane.layout import ENTRY, FLOW, MATCH, POD, REVERSE, REVERSE_WAYS, VIP, W_FLOWS, WAYS


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
    World(0, many_vips(1))  # loads the kernels
    gc.collect()
    shared, private = rss_bytes("RssShmem"), rss_bytes("RssAnon")
    world = World(0, many_vips(vips, 1))
    gc.collect()
    used = {"tables": rss_bytes("RssShmem") - shared, "records": rss_bytes("RssAnon") - private}
    assert len(world.store) == vips
    return {**used, "tables per VIP": used["tables"] / vips, "records per VIP": used["records"] / vips}


def cases(scale: Scale) -> list[Case]:
    """By layout; flows that half fill, and nearly fill, their table; VIPs with a pod each."""
    found: list[Case] = [Apart("memory-layout", _layout, "bytes")]
    for flows in scale.flows:
        for log2 in (fitting_log2(flows), fitting_log2(flows) - 1):
            name = f"memory-{count_name(flows)}flow-2e{log2}bucket"
            found.append(Apart(name, functools.partial(_flows, flows, log2), "bytes", {"flows tracked": "flows"}))
    vips = scale.most_vips
    found.append(Apart(f"memory-{count_name(vips)}vip-1pod", functools.partial(_vips, vips), "bytes"))
    return found
