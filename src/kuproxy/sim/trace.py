"""What a trace is once the graph has seen it: a row for each packet towards a VIP, and the flows of those packets."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from kuproxy.model.vip import Pod, VipKey

__all__ = ["PACKET_DTYPE", "Epochs", "Observation"]

PACKET_DTYPE = np.dtype(
    [
        ("time_ns", "<i8"),
        ("key", "<u8"),  # of the 5-tuple, before any translation
        ("hash", "<u4"),  # the data plane's flow hash
        ("vip", "<u4"),  # index in the tables
        ("pod", "<u4"),  # index in the tables, 0 = it went nowhere; later a number of Epochs.pods, + 1
        ("syn", "?"),
        ("kind", "u1"),  # kernels.NEXT, FIRST, UNTRACKED
    ]
)


@dataclass(frozen=True)
class Epochs:
    """The services in time, as arrays.  A pod is one of a VIP: the same address behind two VIPs is two."""

    starts_ns: np.ndarray  # int64[epochs], the first one below every packet
    pods: tuple[tuple[VipKey, Pod], ...]  # with the weights that they had last
    weights: np.ndarray  # int64[epochs, pods], 0 = gets no new flows
    alive: np.ndarray  # bool[epochs, pods]: not lost


@dataclass(frozen=True)
class Observation:
    """Packets in the order of the trace, with what became of them by some algorithm."""

    time_ns: np.ndarray  # int64[packets]
    flow: np.ndarray  # int64[packets], numbers from 0
    epoch: np.ndarray  # int64[packets]
    pod: np.ndarray  # int64[packets], of Epochs.pods; -1 = nowhere
    kind: np.ndarray  # uint8[packets]
    syn: np.ndarray  # bool[packets]
    hashes: np.ndarray  # uint32[flows]
    vips: np.ndarray  # int64[flows], positions in `keys`
    keys: tuple[VipKey, ...]
    edges_ns: np.ndarray  # int64[bins + 1]
    occupancy: np.ndarray  # int64[bins]: flows in the table at each bin's end
    capacity: int

    @cached_property
    def bins(self) -> np.ndarray:
        """int64[packets]: the bin that each packet falls into."""
        found = np.searchsorted(self.edges_ns, self.time_ns, side="right") - 1
        return np.clip(found, 0, len(self.edges_ns) - 2)
