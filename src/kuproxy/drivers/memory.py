"""Packets from and to Python lists: for tests, simulations and benchmarks.

Injected packets are kept in one run of bytes, so that a vector is filled by one call of a kernel and a
benchmark can send the same million packets again and again (`rewind`) at the price of a copy.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from kuproxy.codes import Outcome, PacketFlag
from kuproxy.dataplane.layout import FRAME_SIZE, HEADROOM, META_COUNT, VNET_BYTES, Frame
from kuproxy.drivers._slots import INDEX, load, slot_frame
from kuproxy.drivers.contract import ANSWER_ROOM
from kuproxy.errors import DriverError

_FOR_EVER = np.int64(1 << 62)
_OUTCOMES = {int(outcome): outcome for outcome in Outcome}


class Seen(NamedTuple):
    """A packet as it left the graph."""

    data: bytes
    interface: int
    outcome: Outcome
    reason: int  # codes.Reason
    vnet: bytes | None  # the virtio_net_hdr that would go out with it


class MemoryDriver:
    """Delivers what was injected, collects what came out.

    `packets` are injected at once; `largest` is the size in bytes of the longest packet that will ever be (by
    default the longest of `packets`, and at least 1500-byte Ethernet).  With collect=False outcomes are only
    counted.
    """

    interfaces: tuple[str, ...]

    def __init__(
        self,
        packets: Iterable[bytes | tuple[bytes, int]] = (),
        *,
        largest: int = 0,
        interfaces: Sequence[str] = ("memory0",),
        collect: bool = True,
    ):
        packets = list(packets)
        lengths = [len(p[0]) if isinstance(p, tuple) else len(p) for p in packets]
        self.frame, self._stride = slot_frame(max([largest, *lengths]))
        self.largest = self._stride - HEADROOM - ANSWER_ROOM
        self.interfaces = tuple(interfaces)
        self._collect = collect
        self._interface_map = np.arange(1 << 16).astype(np.uint16)
        self._source = np.frombuffer(b"", np.uint8)
        self._index = np.zeros(0, INDEX)
        self._cursor = 0
        self._waiting: list[tuple[bytes, int, bytes | None]] = []
        self._times = np.zeros(FRAME_SIZE, np.int64)
        self._missing = np.zeros(FRAME_SIZE, np.int64)
        self.clear()
        self.inject(packets)

    def inject(self, packets: Iterable[bytes | tuple[bytes, int]], vnet: bytes | None = None) -> None:
        """Append packets, bytes or (bytes, interface index), all with the same virtio_net_hdr if any.

        Raises DriverError for a packet that does not fit the slots, or a header that is not 10 bytes.
        """
        if vnet is not None and len(vnet) != VNET_BYTES:
            raise DriverError(f"a vnet header has {VNET_BYTES} bytes, not {len(vnet)}")
        for packet in packets:
            data, interface = packet if isinstance(packet, tuple) else (packet, 0)
            if len(data) > self.largest:
                raise DriverError(
                    f"packet of {len(data)} bytes does not fit slots for {self.largest}: set `largest`"
                )
            if not 0 <= interface < len(self._interface_map):
                raise DriverError(f"interface index {interface} is out of range")
            self._waiting.append((bytes(data), interface, vnet))

    def _take_in(self) -> None:
        """Append the waiting packets to the run that `receive` reads from."""
        if self._waiting:
            # What was received stays, for `rewind`.
            chunks = [self._source.tobytes()]
            position = len(chunks[0])
            index = np.zeros(len(self._waiting), INDEX)
            for i, (data, interface, vnet) in enumerate(self._waiting):
                if vnet is not None:
                    chunks.append(vnet)
                    position += VNET_BYTES
                index[i] = (position, 0, len(data), len(data), interface, vnet is not None)
                chunks.append(data)
                position += len(data)
            self._source = np.frombuffer(b"".join(chunks), np.uint8)
            self._index = np.concatenate([self._index, index])
            self._waiting = []

    def rewind(self) -> None:
        """Deliver everything that was ever injected once more."""
        self._cursor = 0

    def clear(self) -> None:
        """Forget what was collected and counted."""
        self.transmitted: list[Seen] = []
        self.passed: list[Seen] = []
        self.dropped: list[Seen] = []
        self.counts = np.zeros(len(Outcome), np.int64)  # packets by outcome

    @property
    def finished(self) -> bool:
        return not self._waiting and self._cursor == len(self._index)

    def receive(self, frame: Frame) -> int:
        """Up to BATCH of the injected packets; 0 when all were delivered."""
        self._take_in()
        n = load(
            self._source,
            self._index,
            self._cursor,
            _FOR_EVER,
            self._interface_map,
            self._stride,
            frame,
            self._times,
            self._missing,
        )
        self._cursor += n
        return n

    def transmit(self, frame: Frame) -> tuple[int, int]:
        """Collect packets[0:META_COUNT] by outcome. Returns (sent, 0)."""
        records = frame.packets[: int(frame.meta[META_COUNT])]
        counts = np.bincount(records["outcome"], minlength=len(Outcome))
        self.counts += counts[: len(Outcome)]
        if self._collect:
            places = {
                int(Outcome.TRANSMIT): self.transmitted,
                int(Outcome.PASS): self.passed,
                int(Outcome.DROP): self.dropped,
            }
            for record in records:
                place = places.get(int(record["outcome"]))
                if place is not None:
                    place.append(_seen(frame.data, record))
        frame.meta[META_COUNT] = 0
        return int(counts[Outcome.TRANSMIT] + counts[Outcome.PASS]), 0

    def close(self) -> None:
        """Deliver nothing more. What was collected stays."""
        self._waiting = []
        self._cursor = len(self._index)


def _seen(data: np.ndarray, record: np.void) -> Seen:
    start, vnet = int(record["start"]), int(record["vnet"])
    return Seen(
        data[start : start + int(record["length"])].tobytes(),
        int(record["interface"]),
        _OUTCOMES[int(record["outcome"])],
        int(record["reason"]),
        data[vnet : vnet + VNET_BYTES].tobytes() if record["flags"] & PacketFlag.VNET else None,
    )
