"""A data plane inside the calling process: one worker, no thread, the caller's clock.

For captures, simulation and tests.
"""

from kuproxy.dataplane import flow_table
from kuproxy.dataplane.graph import run_graph, run_maintenance
from kuproxy.dataplane.layout import T_GENERATION, W_ACK, Frame, WorkerState
from kuproxy.engine.memory import BaselinesMemory, TablesMemory, WorkerMemory
from kuproxy.engine.trace import start_trace


class LocalEngine:
    """Runs the graph on demand. `now` is always the caller's (ticks)."""

    def __init__(self, log2_buckets: int = 10):
        self.memory = TablesMemory()
        self.tables = self.memory.tables
        self.baselines = BaselinesMemory().baselines
        self.worker = WorkerMemory(log2_buckets)

    @property
    def state(self) -> WorkerState:
        """The worker's state bundle."""
        return self.worker.state

    @property
    def states(self) -> tuple[WorkerState, ...]:
        """The state bundles of all workers."""
        return (self.worker.state,)

    def process(self, frame: Frame, now: int) -> None:
        """Run the graph over the packets that a driver has put into the frame."""
        self.acknowledge()
        run_graph(frame, self.tables, self.worker.state, now)

    def maintain(self, now: int, buckets: int | None = None) -> None:
        """Release what expired, in all buckets or in the next few."""
        run_maintenance(self.tables, self.worker.state, now, buckets or len(self.worker.state.entries))

    def acknowledge(self) -> None:
        """Between calls this worker looks at nothing, so it has seen whatever is published."""
        self.worker.state.header[W_ACK] = int(self.tables.header[T_GENERATION])

    def acknowledged(self) -> int:
        """The generation that every worker has seen."""
        self.acknowledge()
        return int(self.worker.state.header[W_ACK])

    def resize(self, log2_buckets: int, now: int) -> None:
        """See WorkerMemory.resize."""
        self.worker.resize(self.tables, log2_buckets, now)

    def trace(self, packets: int) -> None:
        """Trace that many packets more, from the next one on."""
        start_trace(self.worker.state, packets)

    def flush(self) -> int:
        """Forget all flows; returns how many."""
        return int(flow_table.flush(self.worker.state))
