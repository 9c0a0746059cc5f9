"""Writing capture files: packets are encoded by a kernel into a large buffer, and written when it is full."""

import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import numpy as np

from kuproxy.dataplane._jit import kernel
from kuproxy.dataplane.layout import META_COUNT, Frame
from kuproxy.drivers.capture import pcap, pcapng
from kuproxy.drivers.capture.problems import MAX_PACKET
from kuproxy.errors import DriverError

_BUFFER = 1 << 20
_OVERHEAD = 36  # the larger of the formats' headers, trailers and padding


@kernel
def _encode(buffer, position, ng, data, start, length, original, time_ns, interface):
    if ng:
        return pcapng.encode_block(buffer, position, data, start, length, original, time_ns, interface)
    return pcap.encode_record(buffer, position, data, start, length, original, time_ns)


@kernel
def _encode_frame(buffer, position, ng, frame, first, outcomes, times_ns, missing, interfaces):
    """Encode the packets from `first` on whose outcome's bit is set. Returns (next, position, written).

    Stops before a packet that does not fit the buffer.
    """
    written = 0
    for i in range(first, np.int64(frame.meta[META_COUNT])):
        p = frame.packets[i]
        if (outcomes >> np.int64(p["outcome"])) & 1 == 0:
            continue
        length = np.int64(p["length"])
        if position + length + _OVERHEAD > len(buffer):
            return i, position, written
        start = np.int64(p["start"])
        original = length + missing[i]
        interface = interfaces[np.int64(p["interface"])]
        position = _encode(buffer, position, ng, frame.data, start, length, original, times_ns[i], interface)
        written += 1
    return np.int64(frame.meta[META_COUNT]), position, written


class CaptureWriter:
    """A capture file being written; the suffix `.pcap` or `.pcapng` chooses the format.

    Timestamps are nanoseconds in both.  pcapng keeps `interfaces` (names); pcap knows none, there all packets
    go into one sequence.  An existing file is replaced.  Use it as a context manager, or call `close`.
    Raises DriverError when the file cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str], interfaces: Sequence[str] = ("pcap0",)):
        self.path = Path(path)
        suffix = self.path.suffix.lower()
        if suffix not in (".pcap", ".pcapng"):
            raise DriverError(f"{self.path}: the name of a capture file must end in .pcap or .pcapng")
        self.interfaces = tuple(interfaces)
        self.written = 0
        self._ng = suffix == ".pcapng"
        self._buffer = np.zeros(_BUFFER + MAX_PACKET + _OVERHEAD, np.uint8)
        self._position = 0
        try:
            self._file = open(self.path, "wb", buffering=0)  # closed by close()
        except OSError as error:
            raise DriverError(f"{self.path}: {error.strerror}") from error
        try:
            if self._ng:
                descriptions = b"".join(map(pcapng.interface_description, self.interfaces))
                self._put(pcapng.section_header() + descriptions)
            else:
                self._put(pcap.file_header())
        except DriverError:
            self._file.close()
            raise

    def _put(self, data: bytes | memoryview) -> None:
        view = memoryview(data)
        try:
            while view:
                view = view[self._file.write(view) :]
        except OSError as error:
            raise DriverError(f"{self.path}: {error.strerror}") from error

    def flush(self) -> None:
        """Hand everything to the kernel."""
        self._put(self._buffer[: self._position].data)
        self._position = 0

    def write(self, data: bytes, time_ns: int, interface: int = 0, original: int | None = None) -> None:
        """Append one packet. `interface` counts `interfaces`; `original` is its length on the wire."""
        if len(data) > MAX_PACKET:
            raise DriverError(
                f"{self.path}: a packet of {len(data)} bytes; at most {MAX_PACKET} can be written"
            )
        if not 0 <= interface < max(1, len(self.interfaces)):
            raise DriverError(f"{self.path}: interface {interface} of {len(self.interfaces)}")
        if self._position > _BUFFER:
            self.flush()
        original = len(data) if original is None else original
        packet = np.frombuffer(data, np.uint8)
        self._position = _encode(
            self._buffer, self._position, self._ng, packet, 0, len(data), original, time_ns, interface
        )
        self.written += 1

    def write_frame(
        self, frame: Frame, outcomes: int, times_ns: np.ndarray, missing: np.ndarray, interfaces: np.ndarray
    ) -> int:
        """Append the frame's packets whose outcome's bit (1 << Outcome) is set. Returns how many.

        times_ns and missing: int64[FRAME_SIZE], time and bytes lacking per packet; interfaces: int64[65536],
        from PACKET["interface"] to the position in `interfaces`.
        """
        i, total = 0, 0
        while i < frame.meta[META_COUNT]:
            i, self._position, n = _encode_frame(
                self._buffer, self._position, self._ng, frame, i, outcomes, times_ns, missing, interfaces
            )
            total += n
            if i < frame.meta[META_COUNT]:
                if self._position == 0:
                    raise DriverError(f"{self.path}: a packet of more than {MAX_PACKET} bytes")
                self.flush()
        self.written += total
        return total

    def close(self) -> None:
        """Write what is left and close the file."""
        if not self._file.closed:
            try:
                self.flush()
            finally:
                self._file.close()

    def __enter__(self) -> "CaptureWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
