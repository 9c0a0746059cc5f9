"""The AF_PACKET kernels on a ring that is ordinary memory: what the kernel never writes must not hurt.

No privilege is needed.
"""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kuproxy.codes import PacketFlag
from kuproxy.dataplane.layout import BATCH, HOLD_ROOM, META_COUNT, VNET_BYTES, Frame, make_frame
from kuproxy.drivers import af_packet
from kuproxy.drivers._packet_socket import ring_shape
from kuproxy.drivers.af_packet import AfPacketRing, make_ring, receive
from kuproxy.errors import DriverError

FRAME_BYTES = 1024
MAC = 146  # where the kernel puts an Ethernet header


def fake_ring(frames: int) -> tuple[AfPacketRing, Frame]:
    frame = make_frame(np.zeros(frames * FRAME_BYTES + HOLD_ROOM, np.uint8))
    return make_ring(np.arange(frames) * FRAME_BYTES, FRAME_BYTES, -1, -1, 3, None), frame


def fill(
    frame: Frame,
    which: int,
    length: int,
    *,
    status: int = 1,
    mac: int = MAC,
    whole: int | None = None,
    vnet: bytes = b"",
) -> None:
    """What the kernel does: header first, status word last."""
    base = which * FRAME_BYTES
    header = struct.pack("<IIIHH", status, length if whole is None else whole, length, mac, mac + 14 & 0xFFFF)
    frame.data[base : base + 16] = np.frombuffer(header, np.uint8)
    frame.data[base + MAC - VNET_BYTES : base + MAC] = np.frombuffer(vnet.ljust(VNET_BYTES, b"\0"), np.uint8)


def status(frame: Frame, which: int) -> int:
    return int(frame.data[which * FRAME_BYTES])


def test_a_packet_is_described() -> None:
    ring, frame = fake_ring(4)
    fill(frame, 0, 100, vnet=bytes([1, 0x81]))  # partial checksum, TCPv4 segments with ECN
    fill(frame, 1, 14, status=1 | 4 | 16)  # earlier losses and a stripped tag: deliverable all the same
    fill(frame, 2, 60, vnet=bytes([0, 0x80]))  # the ECN bit alone is no segment
    assert receive(ring, frame) == 3 == frame.meta[META_COUNT]
    first, second, third = frame.packets[:3]
    assert (first["start"], first["length"], first["room"], first["vnet"], first["interface"]) == (
        MAC, 100, FRAME_BYTES - MAC, MAC - VNET_BYTES, 3,
    )  # fmt: skip
    assert first["flags"] == PacketFlag.VNET | PacketFlag.PARTIAL_CHECKSUM | PacketFlag.GSO
    assert second["flags"] == third["flags"] == PacketFlag.VNET
    assert ring.stats[af_packet.S_VLAN] == 1
    assert [status(frame, i) for i in range(4)] == [1, 5 | 16, 1, 0], "given back only after transmit"
    assert receive(ring, frame) == 0
    assert [status(frame, i) for i in range(4)] == [0, 0, 0, 0]
    fill(frame, 3, 99)
    assert receive(ring, frame) == 1 and frame.packets[0]["length"] == 99, "the cursor went on"


def test_a_full_ring_is_read_once_around() -> None:
    for frames in (1, 5, BATCH - 1, BATCH, BATCH + 1):
        ring, frame = fake_ring(frames)
        for i in range(frames):
            fill(frame, i, 60 + i)
        n = receive(ring, frame)
        assert n == min(frames, BATCH)
        assert frame.packets["length"][:n].tolist() == list(range(60, 60 + n))
        assert receive(ring, frame) == frames - n
        assert receive(ring, frame) == 0


ring_frames = st.lists(
    st.fixed_dictionaries(
        {
            "length": st.one_of(st.integers(0, FRAME_BYTES + 50), st.integers(0, 0xFFFFFFFF)),
            "mac": st.one_of(st.just(MAC), st.integers(0, 0xFFFF)),
            "whole": st.one_of(st.none(), st.integers(0, 0xFFFFFFFF)),
            "status": st.integers(0, 0xFFFFFFFF).map(lambda word: word | 1),
            "vnet": st.binary(max_size=VNET_BYTES),
        }
    ),
    min_size=1,
    max_size=12,
)


@given(ring_frames)
def test_nonsense_is_counted_and_never_delivered(contents: list[dict[str, object]]) -> None:
    ring, frame = fake_ring(len(contents))
    for i, options in enumerate(contents):
        fill(frame, i, **options)  # type: ignore[arg-type]
    n = receive(ring, frame)
    for record in frame.packets[:n]:
        base = int(record["start"]) // FRAME_BYTES * FRAME_BYTES
        assert base + 32 <= int(record["vnet"]) == int(record["start"]) - VNET_BYTES
        assert 1 <= record["length"] <= record["room"]
        assert int(record["start"]) + int(record["room"]) == base + FRAME_BYTES
    counted = ring.stats[[af_packet.S_RECEIVED, af_packet.S_CUT, af_packet.S_NONSENSE]]
    assert counted.sum() == len(contents) and counted[0] == n
    receive(ring, frame)
    assert not any(status(frame, i) for i in range(len(contents)))


@given(st.integers(1, 3000), st.integers(16, 1 << 17).map(lambda n: n * 16))
def test_ring_frames_lie_within_blocks(frames: int, frame_bytes: int) -> None:
    shape = ring_shape(frames, frame_bytes)
    assert len(shape.offsets) >= frames and shape.block_bytes & (shape.block_bytes - 1) == 0
    assert (
        shape.offsets // shape.block_bytes == (shape.offsets + frame_bytes - 1) // shape.block_bytes
    ).all()
    assert (np.diff(shape.offsets) >= frame_bytes).all()
    assert shape.offsets[-1] + frame_bytes <= shape.size


@pytest.mark.parametrize(("frames", "frame_bytes"), [(0, 2048), (4, 2049), (4, 128), (4, 1 << 22)])
def test_impossible_rings(frames: int, frame_bytes: int) -> None:
    with pytest.raises(DriverError, match="a ring of"):
        ring_shape(frames, frame_bytes)
