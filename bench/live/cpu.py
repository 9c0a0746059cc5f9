"""Processor time: the machine's, that of single processes, and the machine's without what others did meanwhile.

Much of a packet's way through veth runs in softirqs, which no process is charged for.  So the time of a transfer is all
that the machine was busy, less the time of processes that do not belong to it: others share the machine.
"""

import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Moment", "spent"]

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_IDLE = (3, 4)  # idle and iowait; guest times are contained in user and nice
_KTHREADD = 2


@dataclass(frozen=True)
class Moment:
    """Counters at one moment, in seconds."""

    busy: float
    # By process id. Without the children that it has waited for: one may have run for hours before.
    processes: dict[int, float]

    @classmethod
    def now(cls) -> "Moment":
        ticks = [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
        busy = sum(value for place, value in enumerate(ticks) if place not in _IDLE)
        processes = {}
        for entry in os.listdir("/proc"):
            if entry.isdecimal():
                try:
                    fields = Path("/proc", entry, "stat").read_text().rpartition(")")[2].split()
                except (FileNotFoundError, ProcessLookupError):
                    continue
                # Kernel threads work for whoever sends: they are nobody else's.
                if int(entry) != _KTHREADD and int(fields[1]) != _KTHREADD:
                    processes[int(entry)] = sum(int(each) for each in fields[11:13]) * _TICK_S
        return cls(busy * _TICK_S, processes)


def spent(before: Moment, after: Moment, own: Collection[int]) -> tuple[float, dict[int, float]]:
    """Seconds of the machine less those of processes not in `own`, and seconds by process of `own`."""
    used = {pid: after.processes[pid] - at for pid, at in before.processes.items() if pid in after.processes}
    others = sum(seconds for pid, seconds in used.items() if pid not in own)
    return max(0.0, after.busy - before.busy - others), {pid: used.get(pid, 0.0) for pid in own}
