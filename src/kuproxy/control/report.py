"""What `show` tells, put together from the compiler's places and the workers' sums."""

from collections.abc import Callable, Iterable

import numpy as np

from kuproxy.codes import Node, PodCounter, Reason, VipCounter
from kuproxy.control.compile import Compiler, VipRecord
from kuproxy.model.config import InterfaceMark, Settings
from kuproxy.model.report import NodeCount, PodReport, Report, TracedPacket, VipReport, WorkerReport


class Baselines:
    """What the workers had counted for a VIP index before its present owner came: indices are used again."""

    def __init__(self) -> None:
        self._owners: dict[int, VipRecord] = {}
        self._before: dict[int, np.ndarray] = {}
        self._pods_before: dict[int, np.ndarray] = {}

    def note(self, records: Iterable[VipRecord], counters: Callable[[int], np.ndarray]) -> None:
        """Call after each change: indices that have a new owner start from here."""
        for record in records:
            if self._owners.get(record.index) is not record:
                self._owners[record.index] = record
                self._before[record.index] = counters(record.index).copy()

    def since(self, record: VipRecord, counters: Callable[[int], np.ndarray]) -> np.ndarray:
        """uint64[8]: the VIP's own counts."""
        before = self._before.get(record.index)
        now = counters(record.index)
        return now if before is None else now - before

    def note_pods(self, indices: Iterable[int], counters: Callable[[int], np.ndarray]) -> None:
        """The same for pods: call it with the indices that have just been given out."""
        for index in indices:
            self._pods_before[index] = counters(index).copy()

    def pod_since(self, index: int, counters: Callable[[int], np.ndarray]) -> np.ndarray:
        """uint64[8]: the pod's own counts."""
        before = self._pods_before.get(index)
        now = counters(index)
        return now if before is None else now - before


def _pod_reports(
    compiler: Compiler,
    record: VipRecord,
    flows: Callable[[int], int],
    counters: Callable[[int], np.ndarray],
) -> Iterable[PodReport]:
    slots = compiler.slots_of(record)
    weights = {(pod.address, record.vip.pod_port(pod)): pod.weight for pod in record.vip.pods}
    flushed = {pod: index for index, pod in record.flushed.items()}
    for pods, draining in ((record.pods, False), (record.draining, True), (flushed, True)):
        for pod, index in sorted(pods.items()):
            shown = 0 if pod.port == record.vip.target_port else pod.port
            weight = weights.get((pod.address, pod.port), pod.weight)
            counts = counters(index)
            told = {each: int(counts[each]) for each in PodCounter}
            yield PodReport(pod.address, shown, slots.get(index, 0), flows(index), draining, told, weight)


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
        driver,
    )
