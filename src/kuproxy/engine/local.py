"""A data plane inside the calling process: no thread, the caller's clock, and as many workers as wanted.

For captures, simulation and tests. Which worker gets a packet is the caller's business, as it is steering's on a node.
"""

from kuproxy.dataplane import flow_table
from kuproxy.dataplane.graph import run_graph, run_maintenance
from kuproxy.dataplane.layout import T_GENERATION, T_WORKERS, W_ACK, Frame, WorkerState
from kuproxy.engine.flow_key import VPP, FlowKey, Wish
from kuproxy.engine.memory import BaselinesMemory, SharedMemory, TablesMemory, WorkerMemory
from kuproxy.engine.trace import start_trace
from kuproxy.errors import TableFullError


class LocalEngine:
    """Runs the graph on demand. `now` is always the caller's (ticks). Every worker has a table of 2^log2_buckets."""

    def __init__(self, log2_buckets: int = 10, workers: int = 1, flow_hash: Wish = None):
        self.memory = TablesMemory()
        self.tables = self.memory.tables
        self.baselines = BaselinesMemory().baselines
        self.tables.header[T_WORKERS] = workers
        shared, flow_key = SharedMemory(), VPP.meeting(flow_hash)
        self.workers = tuple(
            WorkerMemory(log2_buckets, shared=shared, number=number, flow_key=flow_key)
            for number in range(workers)
        )

    @property
    def worker(self) -> WorkerMemory:
        """The first worker's memory."""
        return self.workers[0]

    @property
    def tables_memory(self) -> TablesMemory:
        """The region that the tables lie in."""
        return self.memory

    @property
    def memories(self) -> tuple[WorkerMemory, ...]:
        """The regions of all workers."""
        return self.workers

    @property
    def state(self) -> WorkerState:
        """The first worker's state bundle."""
        return self.worker.state

    @property
    def states(self) -> tuple[WorkerState, ...]:
        """The state bundles of all workers."""
        return tuple(worker.state for worker in self.workers)

    def process(self, frame: Frame, now: int, worker: int = 0) -> None:
        """Run the graph over the packets that a driver has put into the frame.

        A frame holds fragments that wait for their first one, so each worker must have its own.
        """
        self.acknowledge()
        run_graph(frame, self.tables, self.workers[worker].state, now)

    def maintain(self, now: int, buckets: int | None = None) -> None:
        """Release what expired, in all buckets or in the next few."""
        for state in self.states:
            run_maintenance(self.tables, state, now, buckets or len(state.entries))

    def acknowledge(self) -> None:
        """Between calls the workers look at nothing, so they have seen whatever is published."""
        for state in self.states:
            state.header[W_ACK] = int(self.tables.header[T_GENERATION])

    def acknowledged(self) -> int:
        """The generation that every worker has seen."""
        self.acknowledge()
        return min(int(state.header[W_ACK]) for state in self.states)

    def resize(self, log2_buckets: int, now: int) -> None:
        """See WorkerMemory.resize; all workers' tables or none."""
        before = self.worker.log2_buckets
        for number, worker in enumerate(self.workers):
            try:
                worker.resize(self.tables, log2_buckets, now)
            except TableFullError:
                for done in self.workers[:number]:
                    done.resize(self.tables, before, now)
                raise

    def rehash(self, flow_hash: Wish, now: int) -> None:
        """See WorkerMemory.rehash; all workers' tables or none."""
        before = FlowKey.read(self.state)
        wanted = before.meeting(flow_hash)
        for number, worker in enumerate(self.workers):
            try:
                worker.rehash(self.tables, wanted, now)
            except TableFullError:
                for done in self.workers[:number]:
                    done.rehash(self.tables, before, now)
                raise

    def trace(self, packets: int) -> None:
        """Trace that many packets more of each worker, from the next one on."""
        for state in self.states:
            start_trace(state, packets)

    def flush(self) -> int:
        """Forget all flows; returns how many."""
        return sum(int(flow_table.flush(state)) for state in self.states)
