"""What `show` tells, put together from the compiler's places and the workers' sums."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from kuproxy.codes import Node, PodCounter, Reason, VipCounter
from kuproxy.control.compile import Compiler, VipRecord
from kuproxy.model.config import InterfaceMark, Settings
from kuproxy.model.report import NodeCount, PodReport, Report, TracedPacket, VipReport, WorkerReport


class Baselines:
    """What the workers had counted for an index before its present owner came: indices are used again."""

    def __init__(self, vips: np.ndarray, pods: np.ndarray) -> None:
        """uint64[MAX_VIPS, 8] and uint64[MAX_PODS, 8]: the counts before, which may come from a former process."""
        self._vips, self._pods = vips, pods
        self._owners: dict[int, VipRecord] = {}

    def adopt(self, records: Iterable[VipRecord]) -> None:
        """These have been counted since before; what is known of them stays."""
        self._owners = {record.index: record for record in records}

    def note(self, records: Iterable[VipRecord], counters: Callable[[int], np.ndarray]) -> None:
        """Call after each change: indices that have a new owner start from here."""
        for record in records:
            if self._owners.get(record.index) is not record:
                self._owners[record.index] = record
                self._vips[record.index] = counters(record.index)

    def since(self, record: VipRecord, counters: Callable[[int], np.ndarray]) -> np.ndarray:
        """uint64[8]: the VIP's own counts."""
        return counters(record.index) - self._vips[record.index]

    def note_pods(self, indices: Sequence[int], counts: np.ndarray) -> None:
        """The same for pods: call it with the indices that have just been given out, and uint64[n, 8] of them."""
        for index in indices:
            self._pods[index] = 0
        for row in np.flatnonzero(counts.any(axis=1)).tolist():
            self._pods[indices[row]] = counts[row]

    def pod_since(self, index: int, counters: Callable[[int], np.ndarray]) -> np.ndarray:
        """uint64[8]: the pod's own counts."""
        return counters(index) - self._pods[index]


def _pod_reports(
    compiler: Compiler,
    record: VipRecord,
    flows: Callable[[int], int],
    counters: Callable[[int], np.ndarray],
) -> Iterable[PodReport]:
    slots = compiler.slots_of(record)
    outside = compiler.outside_slots_of(record)
    weights = {(pod.address, record.vip.pod_port(pod)): pod.weight for pod in record.vip.all_pods}
    flushed = {pod: index for index, pod in record.flushed.items()}
    for pods, draining in ((record.pods, False), (record.draining, True), (flushed, True)):
        for pod, index in sorted(pods.items()):
            shown = 0 if pod.port == record.vip.target_port else pod.port
            weight = weights.get((pod.address, pod.port), pod.weight)
            counts = counters(index)
            told = {each: int(counts[each]) for each in PodCounter}
            yield PodReport(
                pod.address,
                shown,
                slots.get(index, 0),
                flows(index),
                draining,
                told,
                weight,
                None if outside is None else outside.get(index, 0),
            )


def _nodes(counters: np.ndarray) -> Iterable[NodeCount]:
    for node, reason in zip(*np.nonzero(counters), strict=True):
        yield NodeCount(Node(int(node)), Reason(int(reason)), int(counters[node, reason]))


def build_report(
    compiler: Compiler,
    settings: Settings,
    *,
    counters: np.ndarray,
    vip_counters: Callable[[VipRecord], np.ndarray],
    pod_flows: Callable[[int], int],
    pod_counters: Callable[[int], np.ndarray],
    workers: Iterable[WorkerReport],
    interfaces: Iterable[InterfaceMark] = (),
    trace: Iterable[TracedPacket] = (),
    driver: str = "",
) -> Report:
    """`counters` is uint64[nodes, reasons]; `vip_counters` gives uint64[8] in the order of VipCounter, `pod_counters`
    gives uint64[8] of a pod index in the order of PodCounter.
    """
    vips = []
    for record in compiler.records():
        if record.removed and not record.draining:
            continue
        counts = vip_counters(record)
        vips.append(
            VipReport(
                record.index,
                record.vip,
                record.removed,
                {counter: int(counts[counter]) for counter in VipCounter},
                tuple(_pod_reports(compiler, record, pod_flows, pod_counters)),
            )
        )
    return Report(
        settings,
        tuple(vips),
        tuple(_nodes(counters)),
        tuple(workers),
        tuple(interfaces),
        tuple(trace),
        driver=driver,
    )
