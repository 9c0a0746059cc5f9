"""Everything that workers count, summed and copied at one moment: two such samples are a rate.

A sample copies whole arrays up to the highest index in use, some milliseconds for 100,000 VIPs, so that whoever looks
may sort all VIPs by what happens now.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kuproxy.codes import Node
from kuproxy.dataplane.layout import W_VISITS, WorkerState
from kuproxy.engine.contract import Counted
from kuproxy.engine.memory import worker_activity

__all__ = ["Sample", "take_sample"]


@dataclass(frozen=True, slots=True)
class Sample:
    """Sums over workers, since the workers' memory was made."""

    time_s: float
    vips: np.ndarray  # uint64[indices, 8], columns VipCounter
    vip_flows: np.ndarray  # int64[indices]: flows in the tables
    pods: np.ndarray  # uint64[indices, 8], columns PodCounter
    pod_flows: np.ndarray  # int64[indices]
    counters: np.ndarray  # uint64[nodes, reasons]
    given: np.ndarray  # int64[nodes]: packets that each node was given
    workers: tuple[dict[str, int], ...]  # see worker_activity


def take_sample(
    states: Sequence[WorkerState], vips: int, pods: int, time_s: float, beside: Sequence[Counted] = ()
) -> Sample:
    """With the VIP indices below `vips` and the pod indices below `pods`; `beside` workers others have packets."""

    def total(arrays: list[np.ndarray], dtype: type) -> np.ndarray:
        return np.add.reduce(arrays, axis=0, dtype=dtype)

    return Sample(
        time_s=time_s,
        vips=total([each.vip_counters[:vips] for each in (*states, *beside)], np.uint64),
        vip_flows=total([state.vip_flows[:vips] for state in states], np.int64),
        pods=total([each.pod_counters[:pods] for each in (*states, *beside)], np.uint64),
        pod_flows=total([state.pod_refs[:pods] for state in states], np.int64),
        counters=total([state.counters for state in states], np.uint64),
        given=total([state.header[W_VISITS : W_VISITS + max(Node) + 1] for state in states], np.int64),
        workers=tuple(worker_activity(state) for state in states),
    )
