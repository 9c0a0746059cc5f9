"""What those above need of an engine, and the numbers of the data plane that they have to respect."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from kuproxy.dataplane.layout import (
    MAX_INTERFACES,
    TICK_MASK,
    TICKS_PER_SECOND,
    Baselines,
    Tables,
    WorkerState,
)
from kuproxy.engine.memory import TablesMemory, WorkerMemory

__all__ = ["MAX_INTERFACES", "TICKS_PER_SECOND", "TICK_MASK", "Counted", "Engine"]


class Counted(Protocol):
    """Somebody whose packets are counted: a worker's state, or what the kernel does for workers."""

    @property
    def vip_counters(self) -> np.ndarray:
        """uint64[MAX_VIPS, 8]"""
        ...

    @property
    def pod_counters(self) -> np.ndarray:
        """uint64[MAX_PODS, 8]"""
        ...


class Engine(Protocol):
    """The owner of the workers, local or live."""

    tables: Tables
    baselines: Baselines

    @property
    def tables_memory(self) -> TablesMemory:
        """The region that the tables lie in."""
        ...

    @property
    def memories(self) -> Sequence[WorkerMemory]:
        """The regions of all workers."""
        ...

    @property
    def states(self) -> Sequence[WorkerState]:
        """The state bundles of all workers."""
        ...

    def acknowledged(self) -> int:
        """The generation that every worker has seen at a quiescent point."""
        ...
