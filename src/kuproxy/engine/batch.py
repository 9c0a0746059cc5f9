"""Packets as bytes through a local engine, and what became of each, in their order: for Python programs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kuproxy.codes import Outcome, Reason
from kuproxy.dataplane.layout import (
    BATCH,
    HEADROOM,
    HOLD_ROOM,
    META_COUNT,
    Frame,
    make_frame,
)
from kuproxy.engine.local import LocalEngine
from kuproxy.engine.packets import PacketIn, bytes_of, put

__all__ = ["Batch", "PacketOut"]

_ANSWER_ROOM = 128


@dataclass(frozen=True, slots=True)
class PacketOut:
    """What became of a packet; `data` is the frame as it is now."""

    outcome: Outcome
    reason: Reason
    data: bytes
    interface: int
    vip: int  # index, 0: none
    pod: int


class Batch:
    """A frame over memory that grows with the longest packet; fragments that wait lie in it from call to call."""

    def __init__(self, engine: LocalEngine) -> None:
        self._engine = engine
        self._stride = 0
        self._frame = self._sized(2048)

    def _sized(self, stride: int) -> Frame:
        frame = make_frame(np.zeros(BATCH * stride + HOLD_ROOM, np.uint8))
        if self._stride:
            frame.data[-HOLD_ROOM:] = self._frame.data[-HOLD_ROOM:]
        self._stride = stride
        return frame

    def run(self, packets: Sequence[PacketIn], now: int) -> list[PacketOut]:
        """One result for each packet, then one for each fragment that was released or made; `now` in ticks."""
        results: list[PacketOut] = []
        behind: list[PacketOut] = []
        for first in range(0, len(packets), BATCH):
            part = packets[first : first + BATCH]
            need = HEADROOM + max(len(packet.data) for packet in part) + _ANSWER_ROOM
            if need > self._stride:
                self._frame = self._sized(-(-need // 64) * 64)
            done = self._run(part, now)
            results += done[: len(part)]
            behind += done[len(part) :]
        return results + behind

    def _run(self, part: Sequence[PacketIn], now: int) -> list[PacketOut]:
        frame = self._frame
        for slot, packet in enumerate(part):
            put(frame, slot, slot * self._stride + HEADROOM, self._stride - HEADROOM, packet)
        frame.meta[META_COUNT] = len(part)
        self._engine.process(frame, now)
        records = frame.packets[: int(frame.meta[META_COUNT])]
        return [
            PacketOut(
                Outcome(int(record["outcome"])),
                Reason(int(record["reason"])),
                bytes_of(frame, record),
                int(record["interface"]),
                int(record["vip"]),
                int(record["pod"]),
            )
            for record in records
        ]
