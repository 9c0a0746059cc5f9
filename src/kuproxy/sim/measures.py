"""What is told of an Observation: flows that broke, how uneven the load is, how full the table.

- A flow is broken when one of its packets goes to another pod than its packet before, or nowhere, though that pod was
  not lost, and no SYN began a new connection.  With a short timeout that may be long after.
- It is orphaned when its pod was lost: no choice could have saved it.
- Imbalance, of a bin: how many times its due part the busiest pod has, by packets and by flows seen; 1 is even.  The
  due part follows the weights.  Over several VIPs it is the mean, weighted by their packets or flows.
- Untracked: packets that found no room in the table, so that the hash alone chose their pod.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from kuproxy.sim import kernels
from kuproxy.sim.trace import Epochs, Observation

__all__ = ["Cell", "Outcome", "judge"]

_NS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Cell:
    """One point of the grid: the first columns of every row of results."""

    algorithm: str
    new_len: int  # slots, or what stands for them
    buckets: int
    timeout_s: float  # NaN: the data plane's own, by state


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one cell.  `series` has a column, by name, with a value for each bin."""

    cell: Cell
    packets: int
    flows: int
    broken: int
    orphaned: int
    untracked: int  # packets
    nowhere: int  # packets that no pod got
    imbalance: float  # of packets over the whole trace
    peak_occupancy: float  # part of all entries
    series: dict[str, np.ndarray]

    def summary(self) -> dict[str, Any]:
        """One row."""
        packets, flows = max(1, self.packets), max(1, self.flows)
        return {
            **asdict(self.cell),
            "packets": self.packets,
            "flows": self.flows,
            "broken_flows": self.broken,
            "broken_share": self.broken / flows,
            "orphaned_flows": self.orphaned,
            "untracked_packets": self.untracked,
            "untracked_share": self.untracked / packets,
            "nowhere_packets": self.nowhere,
            "imbalance": self.imbalance,
            "peak_occupancy": self.peak_occupancy,
        }

    def rows(self) -> list[dict[str, Any]]:
        """One row a bin."""
        head = asdict(self.cell)
        names = list(self.series)
        columns = [self.series[name].tolist() for name in names]
        return [{**head, **dict(zip(names, values, strict=True))} for values in zip(*columns, strict=True)]


def _imbalance(load: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """float64[bins] from load and weights (both [bins, pods of one VIP]); NaN where there was nothing.

    Pods that get no new flows still have old ones: those do not count.
    """
    serving = np.where(weights > 0, load, 0)
    total = serving.sum(axis=1, keepdims=True)
    due = total * weights / np.maximum(1, weights.sum(axis=1, keepdims=True))
    ratio = np.divide(serving, due, out=np.zeros(load.shape), where=due > 0)
    worst: np.ndarray = ratio.max(axis=1, initial=0.0)
    return np.where(total[:, 0] > 0, worst, np.nan)


def _by_vip(load: np.ndarray, weights: np.ndarray, members: list[np.ndarray]) -> np.ndarray:
    """float64[bins]: `_imbalance` of each VIP's pods, the mean weighted by their load."""
    each = np.array([_imbalance(load[:, pods], weights[:, pods]) for pods in members])
    share = np.array([load[:, pods].sum(axis=1) for pods in members]) * ~np.isnan(each)
    total = share.sum(axis=0)
    mean = np.divide(
        np.nansum(np.nan_to_num(each) * share, axis=0), total, out=np.full(len(load), np.nan), where=total > 0
    )
    return mean


def judge(seen: Observation, epochs: Epochs, cell: Cell) -> Outcome:
    """All measures of one cell."""
    bins, pods = len(seen.edges_ns) - 1, len(epochs.pods)
    flows = len(seen.hashes)
    broken, orphaned = np.zeros(flows, np.bool_), np.zeros(flows, np.bool_)
    kernels.judge(
        seen.flow,
        seen.pod,
        seen.syn,
        seen.epoch,
        epochs.alive,
        np.full(flows, -1, np.int64),
        broken,
        orphaned,
    )
    served = seen.pod >= 0
    place = seen.bins * pods + seen.pod
    packets = np.bincount(place[served], minlength=bins * pods).reshape(bins, pods)
    # A flow counts once in a bin, at the pod that had it first there.
    met = np.sort(np.unique(seen.bins[served] * flows + seen.flow[served], return_index=True)[1])
    by_flow = np.bincount(place[served][met], minlength=bins * pods).reshape(bins, pods)
    row = np.clip(np.searchsorted(epochs.starts_ns, seen.edges_ns[:-1], side="right") - 1, 0, None)
    weights = epochs.weights[row]
    members = [
        np.array([n for n, (owner, _pod) in enumerate(epochs.pods) if owner == key], np.int64)
        for key in seen.keys
    ]
    # Over the whole trace a pod's due part is the sum of those of the bins.
    part = np.zeros((1, pods))
    for numbers in members:
        share = weights[:, numbers] / np.maximum(1, weights[:, numbers].sum(axis=1, keepdims=True))
        part[0, numbers] = (share * packets[:, numbers].sum(axis=1, keepdims=True)).sum(axis=0)
    untracked = seen.kind == kernels.UNTRACKED
    series = {
        "time_s": (seen.edges_ns[1:] - seen.edges_ns[0]) / _NS,
        "packets": packets.sum(axis=1),
        "flows": by_flow.sum(axis=1),
        "imbalance_packets": _by_vip(packets, weights, members) if members else np.full(bins, np.nan),
        "imbalance_flows": _by_vip(by_flow, weights, members) if members else np.full(bins, np.nan),
        "occupancy": seen.occupancy / seen.capacity,
        "untracked": np.bincount(seen.bins[untracked], minlength=bins),
    }
    whole = _by_vip(packets.sum(axis=0, keepdims=True), part, members) if members else np.array([np.nan])
    return Outcome(
        cell=cell,
        packets=len(seen.flow),
        flows=flows,
        broken=int(broken.sum()),
        orphaned=int((orphaned & ~broken).sum()),
        untracked=int(untracked.sum()),
        nowhere=int((~served).sum()),
        imbalance=float(whole[0]),
        peak_occupancy=float(seen.occupancy.max(initial=0) / seen.capacity),
        series=series,
    )
