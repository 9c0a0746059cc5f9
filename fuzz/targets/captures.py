"""A capture file is read as far as it is whole; every packet lies within it, and nothing is read past it.

pcap and pcapng. Parts: the suffix, then the file in pieces: headers and records.
"""

from __future__ import annotations

import struct
from pathlib import Path
from random import Random

from fuzz.mutate import damage
from fuzz.target import FileTarget, Parts
from kuproxy.drivers.capture.driver import CaptureDriver
from kuproxy.drivers.capture.reader import Capture
from kuproxy.drivers.capture.writer import CaptureWriter
from kuproxy.errors import DriverError
from packets import SAMPLES

FRAMES = [data for data in SAMPLES.values() if len(data) < 200]
LENGTHS = (
    0,
    1,
    3,
    4,
    8,
    12,
    16,
    20,
    28,
    32,
    0xFF,
    0xFFFF,
    262144,
    262145,
    0x7FFFFFFF,
    0x80000000,
    0xFFFFFFFC,
    0xFFFFFFFF,
)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


class Captures(FileTarget):
    keeps = 1
    isolated = True  # kernels read the file

    def __init__(self) -> None:
        super().__init__()
        self._warm()

    def _warm(self) -> None:
        """Compile in this process, before there are children."""
        for suffix in (".pcap", ".pcapng"):
            path = self.directory / f"warm{suffix}"
            with CaptureWriter(path) as writer:
                writer.write(FRAMES[0], 1)
            self._read(path)

    # -------------------------------------------------------------------------------------------------- cases

    def draw(self, rng: Random) -> Parts:
        order = rng.choice("<<>")
        ng = rng.randrange(2) == 0
        pieces = self._pcapng(rng, order) if ng else self._pcap(rng, order)
        for _ in range(rng.choice((0, 1, 1, 2, 4))):
            at = rng.randrange(len(pieces))
            kind = rng.randrange(6)
            if kind <= 2 and len(pieces[at]) >= 8:  # a word of a header
                place = 4 * rng.randrange(min(8, len(pieces[at]) // 4))
                value = struct.pack(order + "I", rng.choice(LENGTHS))
                pieces[at] = pieces[at][:place] + value + pieces[at][place + 4 :]
            elif kind == 3:
                pieces.insert(rng.randrange(len(pieces) + 1), pieces[at])
            elif kind == 4 and len(pieces) > 1:
                del pieces[at]
            else:
                pieces[at] = damage(rng, pieces[at], rng.choice((1, 3)))
        return (b".pcapng" if ng else b".pcap", *pieces)

    @staticmethod
    def _pcap(rng: Random, order: str) -> list[bytes]:
        magic = rng.choice((0xA1B2C3D4, 0xA1B23C4D, 0xA1B2C3D4, 0xA1B2CD34))
        link = rng.choice((1, 1, 1, 113, 0xF0000001))
        pieces = [struct.pack(order + "IHHiIII", magic, 2, 4, 0, 0, 65535, link)]
        for _ in range(rng.randrange(6)):
            data = rng.choice(FRAMES)
            original = rng.choice((len(data), len(data), 1500, 0))
            when = rng.choice((0, 1, 1_700_000_000, 2**32 - 1))
            pieces.append(
                struct.pack(order + "IIII", when, rng.choice((0, 999_999, 2**32 - 1)), len(data), original)
                + data
            )
        return pieces

    @staticmethod
    def _pcapng(rng: Random, order: str) -> list[bytes]:
        def block(kind: int, body: bytes) -> bytes:
            length = struct.pack(order + "I", 12 + len(_padded(body)))
            return struct.pack(order + "I", kind) + length + _padded(body) + length

        def option(code: int, value: bytes) -> bytes:
            return struct.pack(order + "HH", code, len(value)) + _padded(value)

        def interface() -> bytes:
            options = b""
            if rng.randrange(2):
                options += option(2, rng.choice((b"eth0", b"eth1", b"", b"\xff\xfe", b"a" * 300)))
            if rng.randrange(2):
                options += option(
                    9, bytes([rng.choice((6, 9, 3, 0x80 | 10, 0x80 | 63, 0x80 | 127, 63, 127, 0))])
                )
            if rng.randrange(3) == 0:
                options += option(14, struct.pack(order + "q", rng.choice((0, -1, 2**62))))
            return block(
                1, struct.pack(order + "HHI", rng.choice((1, 1, 1, 113)), 0, 0) + options + option(0, b"")
            )

        def section() -> bytes:
            return block(0x0A0D0D0A, struct.pack(order + "IHHq", 0x1A2B3C4D, 1, rng.choice((0, 0, 2)), -1))

        pieces = [section(), interface()]
        for _ in range(rng.randrange(7)):
            data = rng.choice(FRAMES)
            kind = rng.randrange(10)
            if kind <= 4:
                where = rng.choice((0, 0, 1, 2**32 - 1))
                head = struct.pack(
                    order + "IIIII", where, rng.getrandbits(32), rng.getrandbits(32), len(data), len(data)
                )
                pieces.append(block(6, head + _padded(data)))
            elif kind == 5:
                pieces.append(block(3, struct.pack(order + "I", rng.choice((len(data), 1500))) + data))
            elif kind == 6:
                head = struct.pack(order + "HHIIII", 0, 0, 1, 2, len(data), len(data))
                pieces.append(block(2, head + _padded(data)))
            elif kind == 7:
                pieces.append(interface())
            elif kind == 8:
                pieces.append(section())
            else:
                pieces.append(
                    block(rng.choice((4, 5, 10, 0xBAD, 0x40000BAD)), rng.randbytes(rng.randrange(40)))
                )
        return pieces

    # ------------------------------------------------------------------------------------------------ promise

    def check(self, parts: Parts) -> None:
        data = b"".join(parts[1:])
        path = self.directory / f"case{parts[0].decode()}"
        path.write_bytes(data)
        self._read(path)

    @staticmethod
    def _read(path: Path) -> None:
        size = path.stat().st_size
        try:
            capture = Capture(path)
        except DriverError as error:
            assert str(path) in str(error) and len(str(error).splitlines()) == 1, f"{error}"
            return
        if capture.error is not None:
            assert 0 <= capture.error.offset <= size, f"{capture.error} in a file of {size} bytes"
        total = 0
        for entry in capture.packets:
            offset, captured = int(entry["offset"]), int(entry["captured"])
            assert offset > 0 and offset + captured <= size, f"a packet at {offset} + {captured} of {size}"
            assert int(entry["original"]) >= captured
            assert int(entry["interface"]) < len(capture.interfaces)
            total += captured
        assert total <= size, "packets overlap"
        driver = CaptureDriver(capture)
        received = 0
        while not driver.finished:
            count = driver.receive(driver.frame)
            assert count > 0, "nothing comes, and it is not finished"
            for number, record in enumerate(driver.frame.packets[:count]):
                start, length = int(record["start"]), int(record["length"])
                assert driver.frame.data[start : start + length].tobytes() == capture.packet(
                    received + number
                )
            received += count
        assert received == len(capture)
        driver.close()
