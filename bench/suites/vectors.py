"""What the vector's size is worth: the same packets in vectors of 1 to FRAME_SIZE."""

from bench.harness import Case, Scale
from bench.suites.graph import GraphCase, fitting_log2
from kuproxy.dataplane.layout import BATCH, FRAME_SIZE


def cases(scale: Scale) -> list[Case]:
    """nat44, established flows. BATCH is what drivers fill at most; the frame's other records await fragments."""
    flows = scale.flows[min(1, len(scale.flows) - 1)]
    return [
        GraphCase(
            scale, "nat44", "hit", flows, fitting_log2(flows), vector=vector, stages=False, suffix=f"-vec{vector}"
        )
        for vector in (1, 8, 32, 64, 128, BATCH, FRAME_SIZE)
    ]
