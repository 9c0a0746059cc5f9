"""What every driver promises, and the table of drivers.

A driver owns the memory that packets lie in and lends it to the graph for one vector at a time:

    n = driver.receive(frame)      # packets[0:n] and meta[META_COUNT] are set
    ... the graph runs; it may append released fragments and so raise meta[META_COUNT] ...
    sent, failed = driver.transmit(frame)

**receive** fills at most BATCH records, in the order in which the packets came:

- `start`, `length`: the packet, from its Ethernet header on, at frame.data[start : start + length];
- `room`: bytes that may be written from `start`; at least 256, and at least 128 more than `length` where the
  medium allows it, so that an answer (TCP RST, ICMP error) always fits; no two packets share headroom or room;
- headroom: the HEADROOM bytes before `start`, the virtio_net_hdr's among them, belong to the packet too, for the
  headers of a tunnel, or so that its front may move there when a header grows (IPv4 to IPv6: 20 to 48 bytes);
- `interface`: index of the interface that it came in by;
- `flags` and `vnet`: with VNET, a virtio_net_hdr of 10 bytes at frame.data[vnet : vnet + 10] says whether the
  checksum is partial (PARTIAL_CHECKSUM) and whether this is a segment to be split (GSO);
- everything else in these records is zero; records from n on may hold anything.

It never delivers a packet that the medium has cut without saying so, never blocks, and returns 0 when there
is nothing (yet: `finished` tells whether more can come).  What lies past the driver's own buffers, the last
HOLD_ROOM bytes of frame.data, is not the driver's.

**transmit** sends packets[0 : meta[META_COUNT]] whose outcome is TRANSMIT or PASS, in index order, from their
`start` and current `length`, and gives all buffers back.  DROP and HELD packets vanish.  The graph may have moved
`start` down into the headroom, the vnet header with it; appended packets lie in the hold area, with their vnet header
directly before `start` when they have the flag.  Whoever changes a packet's length also clears or corrects its vnet
header.  It returns how many were sent and how many could not be; it never waits for longer than some milliseconds, and
counts nothing in WorkerState: that is the caller's.  Afterwards meta[META_COUNT] is 0: the records' buffers may be
overwritten at any time.

A `receive` that follows another without a `transmit` gives the former packets' buffers back unsent.

Drivers for live traffic also have kernels that an engine's compiled loop calls, with a bundle of arrays that the
driver keeps as `ring`: receive(ring, frame), transmit(ring, frame), wait(ring, timeout_ms), which returns READY,
NOTHING or BROKEN, and kernel_drops(ring), the packets that the kernel dropped so far because we were too slow.
"""

from importlib import import_module
from typing import NamedTuple, Protocol, runtime_checkable

from kuproxy.dataplane.layout import Frame
from kuproxy.errors import DriverError

ANSWER_ROOM = 128  # an ICMPv6 error adds 48 bytes, an IPv4 one 28; tunnels grow into the headroom
MIN_ROOM = 256

READY, NOTHING, BROKEN = 1, 0, -1  # what a live driver's `wait` returns; BROKEN wants the driver's `check`


@runtime_checkable
class Driver(Protocol):
    """The face of a driver towards an engine that is not compiled (replay, simulation, tests)."""

    frame: Frame  # over the driver's own memory; the only frame that it may be given
    interfaces: tuple[str, ...]  # names, for those who choose the numbers in PACKET["interface"]

    @property
    def finished(self) -> bool:
        """Whether `receive` will return 0 for ever."""
        ...

    def receive(self, frame: Frame) -> int: ...

    def transmit(self, frame: Frame) -> tuple[int, int]: ...

    def close(self) -> None: ...


class DriverRow(NamedTuple):
    """One line of the table of drivers."""

    module: str
    name: str  # of the class
    live: bool  # real traffic and the real clock; the others bring their own time
    text: str


DRIVERS = {
    "memory": DriverRow(
        "kuproxy.drivers.memory", "MemoryDriver", False, "lists of bytes: tests and benchmarks"
    ),
    "capture": DriverRow("kuproxy.drivers.capture", "CaptureDriver", False, "pcap and pcapng files"),
    "af_packet": DriverRow(
        "kuproxy.drivers.af_packet", "AfPacketDriver", True, "a Linux interface, with GSO"
    ),
    "af_xdp": DriverRow(
        "kuproxy.drivers.af_xdp",
        "AfXdpDriver",
        True,
        "a queue of a Linux interface, before the kernel's stack",
    ),
}


def driver_class(name: str) -> type:
    """The class of the driver `name`; its module is imported only now, because kernels take time to load.

    Raises DriverError for an unknown name.
    """
    row = DRIVERS.get(name)
    if row is None:
        raise DriverError(f"no driver {name!r}; there are {', '.join(DRIVERS)}")
    return getattr(import_module(row.module), row.name)
