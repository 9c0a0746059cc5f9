"""Explanations from configuration files: a plane of its own, and what a capture held before the packet in question."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kuproxy.drivers.capture.driver import CaptureDriver
from kuproxy.drivers.capture.reader import Capture
from kuproxy.engine.contract import TICK_MASK, TICKS_PER_SECOND
from kuproxy.engine.packets import PacketIn
from kuproxy.explain.report import Explanation
from kuproxy.explain.services import finder
from kuproxy.explain.whatif import WhatIf, explain_both
from kuproxy.load import load_config
from kuproxy.replay import Replay, local_plane

__all__ = ["explain_files"]

_FRESH = 100  # ticks: any time will do
_OUTSIDE = "outside"  # where packets come in by that no interface is named for
NS_PER_TICK = 1_000_000_000 // TICKS_PER_SECOND


def explain_files(
    configs: Sequence[Path],
    data: bytes,
    interface: int,
    what_if: WhatIf,
    *,
    before: tuple[Path, int] | None = None,
) -> Explanation:
    """`before`: a capture, and how many of its packets came first; the next one's time is the clock's.

    Raises KuError.
    """
    config = load_config(configs)
    if before is None:
        # Numbers from 1 on stand for the interfaces of the configuration, in its order.
        plane = local_plane(config, [_OUTSIDE, *(mark.name for mark in config.interfaces)])[1]
        now = _FRESH
    else:
        path, count = before
        capture = Capture(path)
        its_time_ns = int(capture.packets[count]["time_ns"])
        capture.packets = capture.packets[:count]
        driver = CaptureDriver(capture)
        work = Replay(config, driver)
        work.forward()
        plane, now = work.plane, max(driver.now_ns, its_time_ns) // NS_PER_TICK & TICK_MASK
    packet = PacketIn(data, interface)
    return explain_both(plane, packet, now, what_if, services=finder(config.services, config.view))
