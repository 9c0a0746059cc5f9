"""A capture file as traffic: packets come in file order, at the times that the file says."""

import os

import numpy as np

from kuproxy.codes import Outcome
from kuproxy.dataplane.layout import FRAME_SIZE, META_COUNT, Frame
from kuproxy.drivers._slots import NS_PER_TICK, load, slot_frame
from kuproxy.drivers.capture.reader import Capture
from kuproxy.drivers.capture.writer import CaptureWriter

_SENT = 1 << Outcome.TRANSMIT | 1 << Outcome.PASS


class CaptureDriver:
    """Delivers the packets of `source`; writes what is sent to `output`, what is dropped to `dropped`.

    A vector spans less than `window_ns` and never two ticks, so that one `now_ns` is right for all of it.  Of
    the vector that `receive` delivered:

    - times_ns[i], int64[FRAME_SIZE]: the packet's time, in ns since the epoch, as the file says;
    - missing[i], int64[FRAME_SIZE]: bytes that were on the wire and are not in the file, 0 for a whole
      packet;
    - now_ns: the time of its first packet, or of an earlier one if the file goes back in time.

    PACKET["interface"] counts `interfaces`; put other numbers into `interface_map` (uint16[len(interfaces)],
    all different) before the first `receive` to have those.  A damaged file ends where the damage is: see
    `capture.error`.
    """

    def __init__(
        self,
        source: Capture | str | os.PathLike[str],
        output: CaptureWriter | str | os.PathLike[str] | None = None,
        *,
        dropped: CaptureWriter | str | os.PathLike[str] | None = None,
        window_ns: int = 10_000_000,
    ):
        self.capture = source if isinstance(source, Capture) else Capture(source)
        self.interfaces = tuple(self.capture.interfaces)
        self.interface_map = np.arange(max(1, len(self.interfaces))).astype(np.uint16)
        self.frame, self._stride = slot_frame(self.capture.largest)
        self.window_ns = window_ns
        self.times_ns = np.zeros(FRAME_SIZE, np.int64)
        self.missing = np.zeros(FRAME_SIZE, np.int64)
        self.now_ns = 0
        self._cursor = 0
        self._back: np.ndarray | None = None  # from PACKET["interface"] to the file's
        self._output = self._writer(output)
        self._dropped = self._writer(dropped)

    def _writer(self, target: CaptureWriter | str | os.PathLike[str] | None) -> CaptureWriter | None:
        if target is None or isinstance(target, CaptureWriter):
            return target
        return CaptureWriter(target, self.interfaces or ("pcap0",))

    @property
    def finished(self) -> bool:
        return self._cursor == len(self.capture)

    @property
    def next_ns(self) -> int | None:
        """Time of the next packet that `receive` would deliver; None after the last."""
        return None if self.finished else int(self.capture.packets[self._cursor]["time_ns"])

    @property
    def tick(self) -> int:
        """`now_ns` in the data plane's ticks."""
        return self.now_ns // NS_PER_TICK

    def receive(self, frame: Frame) -> int:
        """The next vector; 0 at the end of the file."""
        n = load(
            self.capture.data,
            self.capture.packets,
            self._cursor,
            self.window_ns,
            self.interface_map,
            self._stride,
            frame,
            self.times_ns,
            self.missing,
        )
        self._cursor += n
        if n:
            self.now_ns = max(self.now_ns, int(self.times_ns[0])) if self.now_ns else int(self.times_ns[0])
        # Fragments that the graph releases into this vector leave now, and are whole.
        self.times_ns[n:] = self.now_ns
        self.missing[n:] = 0
        return n

    def transmit(self, frame: Frame) -> tuple[int, int]:
        """Write TRANSMIT and PASS to `output`, DROP to `dropped`. Returns (sent, 0).

        Raises DriverError when a file cannot be written.
        """
        if self._back is None:
            self._back = np.zeros(1 << 16, np.int64)
            self._back[self.interface_map] = np.arange(len(self.interface_map))
        for writer, outcomes in ((self._output, _SENT), (self._dropped, 1 << Outcome.DROP)):
            if writer is not None:
                writer.write_frame(frame, outcomes, self.times_ns, self.missing, self._back)
        outcome = frame.packets["outcome"][: int(frame.meta[META_COUNT])]
        sent = int(np.count_nonzero((outcome == Outcome.TRANSMIT) | (outcome == Outcome.PASS)))
        frame.meta[META_COUNT] = 0
        return sent, 0

    def close(self) -> None:
        """Deliver nothing more; close the files that are being written."""
        self._cursor = len(self.capture)
        for writer in (self._output, self._dropped):
            if writer is not None:
                writer.close()
