"""Capture files: what we write others read, what others write we read, and damage is reported where it is."""

from __future__ import annotations

import functools
import re
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kuproxy.drivers.capture import Capture, CaptureError, CaptureWriter
from kuproxy.drivers.capture.problems import MAX_PACKET, PROBLEM_TEXT, Stop
from kuproxy.errors import DriverError

SECOND = 1_000_000_000
START = 1_700_000_000 * SECOND

packets_of = st.lists(
    st.tuples(
        st.binary(max_size=90),
        st.integers(0, (1 << 32) * SECOND - 1),  # what pcap can say
        st.integers(0, 3),  # interface
        st.integers(0, 5000),  # bytes cut off
    ),
    max_size=20,
)
EXAMPLE = [
    (bytes(range(60)), START + 123_456_789, 0, 0),
    (b"\xff" * 61, START + 2 * SECOND, 1, 1453),
    (b"", START + 2 * SECOND + 1, 0, 70),
    (bytes(3000), START + 3 * SECOND + 999_999_999, 1, 0),
]


def write(path: Path, packets: list[tuple[bytes, int, int, int]], names: list[str]) -> None:
    with CaptureWriter(path, names) as writer:
        for data, time_ns, interface, cut in packets:
            writer.write(data, time_ns, interface, len(data) + cut)
        assert writer.written == len(packets)


def read(capture: Capture) -> list[tuple[bytes, int, int, int]]:
    return [
        (capture.packet(i), int(p["time_ns"]), int(p["interface"]), int(p["original"] - p["captured"]))
        for i, p in enumerate(capture.packets)
    ]


# ------------------------------------------------------------------------------------------------ round trips


@given(packets=packets_of, suffix=st.sampled_from([".pcap", ".pcapng"]))
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, packets: Any, suffix: str) -> None:
    path = tmp_path_factory.getbasetemp() / f"round{suffix}"
    names = ["eth0", "wlan0", "veth:ä", "x" * 300]
    write(path, packets, names)
    capture = Capture(path, strict=True)
    if suffix == ".pcap":
        packets = [(data, time_ns, 0, cut) for data, time_ns, _, cut in packets]
        names = ["pcap0"]
    assert read(capture) == packets
    assert (capture.interfaces, capture.format) == (names, suffix[1:])
    assert capture.cut == sum(cut > 0 for *_, cut in packets)
    assert capture.largest == max((len(data) for data, *_ in packets), default=0)


def test_many_large_packets(tmp_path: Path) -> None:
    """More than the index's chunk and the writer's buffer."""
    for suffix in (".pcap", ".pcapng"):
        with CaptureWriter(tmp_path / f"many{suffix}") as writer:
            for i in range(70_000):
                writer.write(i.to_bytes(4, "big") * 15, START + i)
            writer.write(b"\x55" * MAX_PACKET, START)
            with pytest.raises(DriverError, match="at most"):
                writer.write(bytes(MAX_PACKET + 1), START)
        capture = Capture(tmp_path / f"many{suffix}", strict=True)
        assert len(capture) == 70_001 and capture.packet(69_999) == (69_999).to_bytes(4, "big") * 15
        assert capture.packet(70_000) == b"\x55" * MAX_PACKET


# --------------------------------------------------------------------------------------------- other programs


def scapy_packets(path: Path) -> list[tuple[bytes, int]]:
    from scapy.utils import RawPcapNgReader, RawPcapReader

    if path.suffix == ".pcap":
        with RawPcapReader(str(path)) as reader:
            return [(data, m.sec * SECOND + m.usec * (1 if reader.nano else 1000)) for data, m in reader]
    with RawPcapNgReader(str(path)) as reader:
        return [
            (data, (m.tshigh << 32 | m.tslow) * SECOND // m.tsresol)
            for data, m in reader
            if m.tsresol is not None
        ]


def tshark_packets(path: Path) -> list[tuple[int, int, int, str]]:
    """(captured, original, time in ns, interface name) per packet, as tshark sees them."""
    fields = ["frame.cap_len", "frame.len", "frame.time_epoch", "frame.interface_name"]
    done = subprocess.run(
        ["tshark", "-n", "-r", str(path), "-T", "fields", *(word for f in fields for word in ("-e", f))],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    rows = []
    for line in done.stdout.splitlines():
        captured, original, time, name = line.split("\t")
        seconds, fraction = time.split(".")
        rows.append((int(captured), int(original), int(seconds) * SECOND + int(fraction.ljust(9, "0")), name))
    return rows


@functools.cache
def has(program: str) -> bool:
    return shutil.which(program) is not None


@pytest.mark.parametrize("suffix", [".pcap", ".pcapng"])
def test_scapy_reads_what_we_write(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"ours{suffix}"
    write(path, EXAMPLE, ["eth0", "eth1"])
    assert scapy_packets(path) == [(data, time_ns) for data, time_ns, *_ in EXAMPLE]


@pytest.mark.skipif(not has("tshark"), reason="no program `tshark`")
@pytest.mark.parametrize("suffix", [".pcap", ".pcapng"])
def test_tshark_reads_what_we_write(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"ours{suffix}"
    write(path, EXAMPLE, ["eth0", "eth1"])
    names = ["eth0", "eth1"] if suffix == ".pcapng" else ["", ""]
    assert tshark_packets(path) == [(len(d), len(d) + cut, t, names[i]) for d, t, i, cut in EXAMPLE]


@pytest.mark.parametrize("nano", [False, True])
@pytest.mark.parametrize("endianness", ["<", ">"])
def test_we_read_what_scapy_writes(tmp_path: Path, nano: bool, endianness: str) -> None:
    from scapy.layers.l2 import Ether
    from scapy.packet import Raw
    from scapy.utils import PcapWriter

    path = tmp_path / "theirs.pcap"
    sent = [Ether() / Raw(bytes([i]) * (20 + i)) for i in range(5)]
    with PcapWriter(str(path), nano=nano, endianness=endianness, linktype=1) as writer:
        for i, packet in enumerate(sent):
            packet.time = 1_700_000_000 + i
            writer.write(packet)
    expected = [(bytes(p), (1_700_000_000 + i) * SECOND, 0, 0) for i, p in enumerate(sent)]
    assert read(Capture(path, strict=True)) == expected


def test_we_read_pcapng_of_scapy(tmp_path: Path) -> None:
    from scapy.layers.l2 import Ether
    from scapy.packet import Raw
    from scapy.utils import PcapNgWriter

    path = tmp_path / "theirs.pcapng"
    with PcapNgWriter(str(path)) as writer:
        for name in ("eth0", "eth1", "eth0"):
            packet = Ether() / Raw(name.encode() * 9)
            packet.time, packet.sniffed_on = 1_700_000_000, name
            writer.write(packet)
    capture = Capture(path, strict=True)
    # scapy describes a nameless interface beside those of the packets
    assert [capture.interfaces[i] for i in capture.packets["interface"]] == ["eth0", "eth1", "eth0"]
    assert [capture.packet(i)[14:] for i in range(3)] == [b"eth0" * 9, b"eth1" * 9, b"eth0" * 9]
    assert set(capture.packets["time_ns"].tolist()) == {START}


@pytest.mark.skipif(not has("editcap"), reason="no program `editcap`")
@pytest.mark.parametrize("kind", ["pcap", "nsecpcap", "pcapng"])
def test_we_read_what_wireshark_writes(tmp_path: Path, kind: str) -> None:
    ours, theirs = tmp_path / "ours.pcapng", tmp_path / "theirs"
    write(ours, EXAMPLE, ["eth0", "eth1"])
    subprocess.run(
        ["editcap", "-F", kind, str(ours), str(theirs)], check=True, capture_output=True, timeout=60
    )
    unit = 1000 if kind == "pcap" else 1
    expected = [
        (data, time_ns // unit * unit, interface if kind == "pcapng" else 0, cut)
        for data, time_ns, interface, cut in EXAMPLE
    ]
    assert read(Capture(theirs, strict=True)) == expected


# ------------------------------------------------------------------------- pcapng by hand: what nobody writes


def block(order: str, kind: int, body: bytes) -> bytes:
    body += bytes(-len(body) % 4)
    return struct.pack(order + "II", kind, len(body) + 12) + body + struct.pack(order + "I", len(body) + 12)


def option(order: str, code: int, value: bytes) -> bytes:
    return struct.pack(order + "HH", code, len(value)) + value + bytes(-len(value) % 4)


def section(order: str) -> bytes:
    return block(order, 0x0A0D0D0A, struct.pack(order + "IHHq", 0x1A2B3C4D, 1, 0, -1))


def interface(order: str, *options: bytes, link_type: int = 1, snaplen: int = 0) -> bytes:
    return block(order, 1, struct.pack(order + "HHI", link_type, 0, snaplen) + b"".join(options))


def enhanced(
    order: str, which: int, ticks: int, data: bytes, original: int | None = None, options: bytes = b""
) -> bytes:
    fixed = struct.pack(
        order + "IIIII",
        which,
        ticks >> 32,
        ticks & 0xFFFFFFFF,
        len(data),
        len(data) if original is None else original,
    )
    return block(order, 6, fixed + data + bytes(-len(data) % 4) + options)


def simple(order: str, original: int, data: bytes) -> bytes:
    return block(order, 3, struct.pack(order + "I", original) + data)


def obsolete(order: str, which: int, ticks: int, data: bytes) -> bytes:
    fixed = struct.pack(order + "HHIIII", which, 9, ticks >> 32, ticks & 0xFFFFFFFF, len(data), len(data))
    return block(order, 2, fixed + data)


def opened(path: Path, *blocks: bytes, strict: bool = True) -> Capture:
    path.write_bytes(b"".join(blocks))
    return Capture(path, strict=strict)


@pytest.mark.parametrize("order", ["<", ">"])
def test_every_kind_of_block(tmp_path: Path, order: str) -> None:
    capture = opened(
        tmp_path / "x",
        section(order),
        interface(order, option(order, 2, b"eth9"), option(order, 9, b"\x09"), snaplen=5),
        block(order, 0x0BAD, b"to be skipped"),
        interface(order),  # no name, microseconds
        enhanced(order, 1, 1_000_001, b"abc", 99, option(order, 1, b"a comment") + option(order, 0, b"")),
        simple(order, 8, b"01234"),  # cut by the snaplen of interface 0
        obsolete(order, 0, 77, b"old"),
        simple(order, 3, b"xyz"),
        block(order, 5, bytes(8)),  # interface statistics
    )
    assert read(capture) == [
        (b"abc", 1_000_001_000, 1, 96),
        (b"01234", 1_000_001_000, 0, 3),
        (b"old", 77, 0, 0),
        (b"xyz", 77, 0, 0),
    ]
    assert capture.interfaces == ["eth9", "pcap1"]


def test_sections_of_both_byte_orders(tmp_path: Path) -> None:
    """Each section counts its own interfaces; one of the same name is the same."""
    capture = opened(
        tmp_path / "x",
        section("<"), interface("<", option("<", 2, b"a")), enhanced("<", 0, 1, b"1"),
        section(">"), interface(">", option(">", 2, b"b")), interface(">", option(">", 2, b"a")),
        enhanced(">", 0, 2, b"2"), enhanced(">", 1, 3, b"3"),
        section("<"), interface("<"), enhanced("<", 0, 4, b"4"),
    )  # fmt: skip
    assert read(capture) == [(b"1", 1000, 0, 0), (b"2", 2000, 1, 0), (b"3", 3000, 0, 0), (b"4", 4000, 2, 0)]
    assert capture.interfaces == ["a", "b", "pcap3"]


@given(
    resolution=st.one_of(st.integers(0, 19), st.integers(0x80, 0x80 + 63)),
    ns=st.integers(0, 4_000_000_000 * SECOND),
    offset=st.integers(-1_000_000, 1_000_000),
)
def test_timestamp_resolutions(
    tmp_path_factory: pytest.TempPathFactory, resolution: int, ns: int, offset: int
) -> None:
    base = 2 if resolution & 0x80 else 10
    unit = base ** (resolution & 0x7F)
    ticks = ns * unit // SECOND & 0xFFFFFFFFFFFFFFFF
    if base == 10 and unit < SECOND and ticks * (SECOND // unit) >= 1 << 63:
        return
    head = interface(
        "<",
        option("<", 9, bytes([resolution])),
        option("<", 14, struct.pack("<q", offset)),
        option("<", 0, b""),
    )
    capture = opened(tmp_path_factory.getbasetemp() / "t", section("<"), head, enhanced("<", 0, ticks, b"x"))
    exact = ticks * SECOND // unit + offset * SECOND
    assert abs(int(capture.packets["time_ns"][0]) - exact) <= (1 if base == 2 else 0)


# ----------------------------------------------------------------------------------------------------- damage


@pytest.mark.parametrize("suffix", [".pcap", ".pcapng"])
def test_truncation_at_every_byte(tmp_path: Path, suffix: str) -> None:
    """A prefix of a file has a prefix of its packets, and an error unless it ends where a packet ends."""
    whole = tmp_path / f"whole{suffix}"
    packets = [(d[:40], t, i, cut + len(d) - len(d[:40])) for d, t, i, cut in EXAMPLE]
    write(whole, packets, ["eth0", "eth1"])
    content = whole.read_bytes()
    expected = read(Capture(whole))
    ends = {int(p["offset"] + p["captured"]) for p in Capture(whole).packets}
    if suffix == ".pcapng":
        ends = {end + -end % 4 + 4 for end in ends}
    cut = tmp_path / "cut"
    headers = 0
    for size in range(len(content)):
        cut.write_bytes(content[:size])
        try:
            capture = Capture(cut)
        except CaptureError as error:
            assert str(cut) in str(error) and f"byte {error.offset}" in str(error) and error.offset <= size
            headers = size + 1
            continue
        got = read(capture)
        assert got == expected[: len(got)]
        if capture.error is None:
            assert size in ends or not got
        else:
            assert size not in ends and capture.error.offset <= size
            with pytest.raises(CaptureError, match=re.escape(str(capture.error))):
                Capture(cut, strict=True)
    assert headers <= 64
    with pytest.raises(CaptureError, match="byte 0: the file is empty"):
        cut.write_bytes(b"")
        Capture(cut)


@given(data=st.data(), suffix=st.sampled_from([".pcap", ".pcapng"]))
def test_damage_anywhere(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, suffix: str) -> None:
    """Whatever bytes are overwritten: an error or packets, and every packet lies within the file."""
    path = tmp_path_factory.getbasetemp() / f"damage{suffix}"
    write(path, EXAMPLE, ["eth0", "eth1"])
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(content) - 1))
        patch = data.draw(st.binary(min_size=1, max_size=8))
        content[at : at + len(patch)] = patch
    path.write_bytes(content)
    try:
        capture = Capture(path)
    except CaptureError:
        return
    for p in capture.packets:
        assert int(p["offset"]) + int(p["captured"]) <= len(content)
        assert p["captured"] <= min(p["original"], MAX_PACKET) and p["interface"] < len(capture.interfaces)


PCAP = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1)
RECORD = struct.pack("<IIII", 1, 2, 3, 3) + b"abc"


@pytest.mark.parametrize(
    ("content", "offset", "problem"),
    [
        (b"\x1f\x8b" + bytes(30), 0, "gzip"),
        (b"hello, this is no capture", 0, "neither"),
        (struct.pack("<I", 0xA1B2CD34) + bytes(30), 0, "Kuznetsov"),
        (struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 3, 0, 0, 65535, 1), 4, "version 2.3"),
        (struct.pack(">IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 113), 20, "link type 113"),
        (section("<")[:8] + bytes(20), 0, "byte-order"),
        (section("<").replace(b"\x01\0\0\0", b"\x02\0\0\0"), 0, "version 2"),
    ],
)
def test_not_readable_at_all(tmp_path: Path, content: bytes, offset: int, problem: str) -> None:
    with pytest.raises(CaptureError, match=problem) as caught:
        opened(tmp_path / "x", content, strict=False)
    assert caught.value.offset == offset and caught.value.path == tmp_path / "x"


@pytest.mark.parametrize(
    ("blocks", "stop"),
    [
        ((PCAP, RECORD, RECORD[:10]), Stop.CUT_HEADER),
        ((PCAP, RECORD, RECORD[:-1]), Stop.CUT_PACKET),
        ((PCAP, RECORD, struct.pack("<IIII", 1, 2, MAX_PACKET + 1, 3)), Stop.TOO_LONG),
        ((section("<"), interface("<"), enhanced("<", 0, 1, b"x"), bytes(11)), Stop.CUT_BLOCK),
        (
            (section("<"), interface("<"), enhanced("<", 0, 1, b"x"), b"\x07\0\0\0\x0d\0\0\0" + bytes(9)),
            Stop.BLOCK_LENGTH,
        ),
        (
            (section("<"), interface("<"), enhanced("<", 0, 1, b"x"), block("<", 9, b"")[:-1] + b"x"),
            Stop.BLOCK_TRAILER,
        ),
        (
            (section("<"), interface("<"), enhanced("<", 0, 1, b"x"), block("<", 6, bytes(16))),
            Stop.BLOCK_BODY,
        ),
        (
            (
                section("<"),
                interface("<"),
                enhanced("<", 0, 1, b"x"),
                block("<", 6, struct.pack("<IIIII", 0, 0, 0, 5, 5)),
            ),
            Stop.BLOCK_BODY,
        ),
        (
            (section("<"), interface("<"), enhanced("<", 0, 1, b"x"), simple("<", 9, b"short")),
            Stop.BLOCK_BODY,
        ),
        (
            (section("<"), interface("<"), enhanced("<", 0, 1, b"x"), enhanced("<", 1, 1, b"x")),
            Stop.NO_INTERFACE,
        ),
        (
            (
                section("<"),
                interface("<"),
                interface("<", link_type=113),
                enhanced("<", 0, 1, b"x"),
                enhanced("<", 1, 1, b""),
            ),
            Stop.LINK_TYPE,
        ),
    ],
)
def test_problems_say_where(tmp_path: Path, blocks: tuple[bytes, ...], stop: Stop) -> None:
    """One packet is whole; the error names the byte after it, and what is wrong there."""
    capture = opened(tmp_path / "x", *blocks, strict=False)
    assert len(capture) == 1
    assert capture.error is not None
    assert (capture.error.offset, capture.error.problem) == (sum(map(len, blocks[:-1])), PROBLEM_TEXT[stop])


def test_interfaces_that_cannot_be(tmp_path: Path) -> None:
    for options, problem in (
        (option("<", 9, b"\x14"), "10.-20"),
        (option("<", 9, b"\xc0"), "2.-64"),
        (option("<", 14, struct.pack("<q", 1 << 60)), "offset"),
        (struct.pack("<HH", 2, 400) + b"abcd", "longer than its block"),
    ):
        capture = opened(tmp_path / "x", section("<"), interface("<", options), strict=False)
        assert capture.error and re.search(problem, str(capture.error)) and capture.error.offset == 28
    many = opened(tmp_path / "x", section("<"), interface("<") * 4097, strict=False)
    assert many.error and "4096 interfaces" in str(many.error)
    # A link type of no packet is no problem: Wireshark describes interfaces that stay silent.
    opened(tmp_path / "x", section("<"), interface("<", link_type=113), strict=True)


def test_files_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(DriverError, match="No such file"):
        Capture(tmp_path / "nowhere.pcap")
    with pytest.raises(DriverError, match="directory"):
        Capture(tmp_path)
    with pytest.raises(DriverError, match=r"\.pcap or \.pcapng"):
        CaptureWriter(tmp_path / "x.cap")
    with pytest.raises(DriverError, match="No such file"):
        CaptureWriter(tmp_path / "no" / "x.pcap")
    with (
        CaptureWriter(tmp_path / "x.pcapng", ["a"]) as writer,
        pytest.raises(DriverError, match="interface 1"),
    ):
        writer.write(b"", 0, 1)


def test_the_disk_is_full(tmp_path: Path) -> None:
    full = tmp_path / "full.pcap"
    full.symlink_to("/dev/full")
    with pytest.raises(DriverError, match="No space left"):
        CaptureWriter(full)
