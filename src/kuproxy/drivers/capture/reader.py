"""Opening a capture file: which packets lie where, and what is wrong with it."""

import mmap
import os
import struct
from pathlib import Path

import numpy as np

from kuproxy.dataplane.layout import MAX_INTERFACES
from kuproxy.drivers._slots import INDEX
from kuproxy.drivers.capture import pcap, pcapng
from kuproxy.drivers.capture.problems import ETHERNET, PROBLEM_TEXT, Stop
from kuproxy.errors import DriverError

_CHUNK = 1 << 16  # index entries a kernel call: 2 MiB, stays in the cache
_NOT_CAPTURES = {
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x04\x22\x4d\x18": "lz4",
    b"\xfd7zX": "xz",
}


class CaptureError(DriverError):
    """A capture file that cannot be read, wholly or from some byte on."""

    def __init__(self, path: str | os.PathLike[str], offset: int, problem: str) -> None:
        self.path = Path(path)
        self.offset = offset  # in bytes from the file's beginning
        self.problem = problem
        super().__init__(f"{self.path}: byte {offset}: {problem}")


class Capture:
    """A capture file, indexed.

    Packets of a damaged file are readable up to the damage; `error` then says where and what it is (with
    strict=True it is raised).  CaptureError is raised in any case when there is no valid header, DriverError
    when the file cannot be opened.

    - data: uint8[file size], read-only, mapped; packets: INDEX[n], offsets into data, in file order;
    - format: "pcap" or "pcapng"; interfaces: names, which INDEX["interface"] counts;
    - cut: how many packets have fewer bytes than were on the wire (`captured` < `original`).
    """

    def __init__(self, path: str | os.PathLike[str], *, strict: bool = False):
        self.path = Path(path)
        self.error: CaptureError | None = None
        self.interfaces: list[str] = []
        self._chunks: list[np.ndarray] = []
        try:
            with open(self.path, "rb") as file:
                size = os.fstat(file.fileno()).st_size
                content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
        except (OSError, ValueError) as error:
            raise DriverError(f"{self.path}: {getattr(error, 'strerror', None) or error}") from error
        if isinstance(content, mmap.mmap) and hasattr(mmap, "MADV_SEQUENTIAL"):
            content.madvise(mmap.MADV_SEQUENTIAL)
        self.data = np.frombuffer(content, np.uint8)

        if self._head(0, 4) == struct.pack("<I", pcapng.SECTION):
            self.format = "pcapng"
            self._index_pcapng()
        else:
            self.format = "pcap"
            self._index_pcap()
        self.packets = np.concatenate(self._chunks) if self._chunks else np.zeros(0, INDEX)
        self._chunks = []
        self.cut = int(np.count_nonzero(self.packets["captured"] < self.packets["original"]))
        if strict and self.error:
            raise self.error

    def __len__(self) -> int:
        return len(self.packets)

    def packet(self, i: int) -> bytes:
        """The captured bytes of packet `i`."""
        entry = self.packets[i]
        offset = int(entry["offset"])
        return self.data[offset : offset + int(entry["captured"])].tobytes()

    @property
    def largest(self) -> int:
        """Bytes of the longest packet, 0 without packets."""
        return int(self.packets["captured"].max(initial=0))

    # ------------------------------------------------------------------------------------------- indexing

    def _head(self, position: int, size: int) -> bytes:
        return self.data[position : position + size].tobytes()

    def _fail(self, position: int, problem: str) -> CaptureError:
        self.error = CaptureError(self.path, position, problem)
        return self.error

    def _index_pcap(self) -> None:
        head = self._head(0, pcap.FILE_HEADER)
        magics = {pcap.MAGIC_US: 1000, pcap.MAGIC_NS: 1, pcap.MAGIC_KUZNETSOV: 0}
        if len(head) < 4:
            raise self._fail(
                len(head), "the file is empty" if not head else "the file ends inside its magic number"
            )
        for order in "<>":
            fraction_ns = magics.get(struct.unpack_from(order + "I", head)[0])
            if fraction_ns is not None:
                break
        else:
            packed = next((name for magic, name in _NOT_CAPTURES.items() if head.startswith(magic)), None)
            raise self._fail(0, f"{packed} data: unpack it first" if packed else "neither pcap nor pcapng")
        if fraction_ns == 0:
            raise self._fail(0, "pcap of the Kuznetsov variant (magic 0xa1b2cd34) is not supported")
        if len(head) < pcap.FILE_HEADER:
            raise self._fail(len(head), "the file ends inside its header")
        major, minor, _, _, _, link_type = struct.unpack_from(order + "HHiIII", head, 4)
        if (major, minor) != (2, 4):
            raise self._fail(4, f"pcap version {major}.{minor} is not supported, only 2.4")
        if link_type & 0xFFFF != ETHERNET:  # the upper bits tell about frame check sequences
            raise self._fail(
                20, f"link type {link_type & 0xFFFF} is not supported, only Ethernet ({ETHERNET})"
            )
        self.interfaces = ["pcap0"]
        position = pcap.FILE_HEADER
        while True:
            chunk = np.empty(_CHUNK, INDEX)
            position, n, stop = pcap.index_records(self.data, position, order == ">", fraction_ns, chunk)
            self._chunks.append(chunk[:n])
            if stop != Stop.ARRAY_FULL:
                break
        if stop != Stop.END:
            self._fail(position, PROBLEM_TEXT[Stop(stop)])

    def _index_pcapng(self) -> None:
        position, last_ns, stop = 0, 0, int(Stop.SECTION)
        big_endian = False
        section: list[tuple[int, ...]] = []  # rows of INTERFACE
        ordinals: dict[str, int] = {}
        described = 0
        try:
            while stop in (Stop.ARRAY_FULL, Stop.SECTION, Stop.INTERFACE):
                if stop == Stop.SECTION:
                    big_endian, length = pcapng.parse_section(self._head(position, 28))
                    self._check_section(position, length, big_endian)
                    position += length
                    section = []
                elif stop == Stop.INTERFACE:
                    length = int.from_bytes(self._head(position + 4, 4), "big" if big_endian else "little")
                    name, *rest = pcapng.parse_interface(self._head(position, length), big_endian)
                    # An interface is known by its name: a later section's `eth0` is the same one.
                    ordinal = ordinals.setdefault(name or f"pcap{described}", len(ordinals))
                    if ordinal >= MAX_INTERFACES:
                        raise ValueError(f"more than {MAX_INTERFACES} interfaces")
                    section.append((ordinal, *rest))
                    described += 1
                    position += length
                rows = np.array(section, pcapng.INTERFACE)
                chunk = np.empty(_CHUNK, INDEX)
                position, n, last_ns, stop = pcapng.index_blocks(
                    self.data, position, big_endian, rows, last_ns, chunk
                )
                if n:
                    self._chunks.append(chunk[:n])
            if stop != Stop.END:
                self._fail(position, PROBLEM_TEXT[Stop(stop)])
        except ValueError as error:
            self._fail(position, str(error))
            if not section and not self._chunks and position == 0:
                raise self.error from None
        self.interfaces = list(ordinals)

    def _check_section(self, position: int, length: int, big_endian: bool) -> None:
        tail = self._head(position + length - 4, 4)
        if len(tail) < 4:
            raise ValueError("the file ends inside a section header")
        if int.from_bytes(tail, "big" if big_endian else "little") != length:
            raise ValueError(PROBLEM_TEXT[Stop.BLOCK_TRAILER])
