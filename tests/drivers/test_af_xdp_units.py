"""No chunk is lost and none has two owners, whatever becomes of the packets: AF_XDP's accounting, without a kernel.

The test plays the kernel's part over rings of ordinary memory.  No privilege is needed.
"""

from __future__ import annotations

import random
import socket
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kuproxy.codes import Outcome
from kuproxy.dataplane._jit import COMPILED
from kuproxy.dataplane.layout import FRAME_SIZE, HOLD_BYTES, HOLD_ROOM, META_COUNT, META_HOLD_BASE, make_frame
from kuproxy.drivers._xdp_umem import (
    CHUNK,
    KERNEL_HEADROOM,
    NONE,
    R_COMPLETED,
    R_FILL,
    R_FREE,
    R_FREE_SLOTS,
    R_HELD,
    R_RECEIVED,
    R_SENT,
    SLOT_CHUNKS,
    make_ring,
    plain_rings,
)
from kuproxy.drivers.af_xdp import S_CUT, S_NONSENSE, receive, transmit

pytestmark = pytest.mark.skipif(not COMPILED, reason="af_xdp needs the compiler")

CHUNKS, SLOTS = 512, 3
UNITS = CHUNKS + SLOTS
PRODUCER, CONSUMER = 0, 1
CONTINUED = 1 << 32
PIECE = CHUNK - KERNEL_HEADROOM


class Kernel:
    """Fills chunks with packets, sends what it finds in the transmit ring, and completes it later."""

    def __init__(self) -> None:
        self.sockets = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)  # something to be kicked
        self.sockets[0].setblocking(False)
        self.shared = plain_rings(CHUNKS)
        self.ring = make_ring(
            self.shared,
            (0, 1, 2),
            chunks=CHUNKS,
            slots=SLOTS,
            fd=self.sockets[0].fileno(),
            interface=5,
            macs=None,
        )
        self.frame = make_frame(np.zeros((CHUNKS + SLOTS * SLOT_CHUNKS) * CHUNK + HOLD_ROOM, np.uint8))
        self.in_flight: list[int] = []  # addresses
        self.sent: list[bytes] = []

    def close(self) -> None:
        for each in self.sockets:
            each.close()

    def arrive(self, packet: bytes, nonsense: bool = False) -> bool:
        """Deliver a packet; False if there are too few chunks to fill."""
        pieces = [packet[at : at + PIECE] for at in range(0, len(packet), PIECE)]
        fill, got = self.shared.fill, self.shared.receive
        if int(fill[PRODUCER]) - int(fill[CONSUMER]) < len(pieces):
            return False
        for number, piece in enumerate(pieces):
            address = int(self.shared.fill_descs[int(fill[CONSUMER]) % CHUNKS]) + KERNEL_HEADROOM
            fill[CONSUMER] += 1
            self.frame.data[address : address + len(piece)] = np.frombuffer(piece, np.uint8)
            more = CONTINUED if number + 1 < len(pieces) else 0
            length = CHUNK + 1 if nonsense else len(piece)
            self.shared.receive_descs[int(got[PRODUCER]) % CHUNKS] = address, length | more
            got[PRODUCER] += 1
        return True

    def take(self, packets: int) -> None:
        """Send up to so many packets."""
        ring, descs = self.shared.send, self.shared.send_descs
        for _ in range(packets):
            packet, more = b"", True
            while more and ring[CONSUMER] != ring[PRODUCER]:
                address, word = (int(each) for each in descs[int(ring[CONSUMER]) % CHUNKS])
                ring[CONSUMER] += 1
                length, more = word & 0xFFFFFFFF, bool(word & CONTINUED)
                assert address % CHUNK + length <= CHUNK, "a descriptor crosses its chunk's end"
                packet += self.frame.data[address : address + length].tobytes()
                self.in_flight.append(address)
            assert not more or not packet, "a packet without an end"
            if packet:
                self.sent.append(packet)

    def complete(self, descriptors: int) -> None:
        for address in self.in_flight[:descriptors]:
            self.shared.complete_descs[int(self.shared.complete[PRODUCER]) % CHUNKS] = address
            self.shared.complete[PRODUCER] += 1
        del self.in_flight[:descriptors]

    def audit(self) -> None:
        """Every unit is in exactly one place."""
        ring, words, shared = self.ring, self.ring.words, self.shared

        def between(descs: np.ndarray, begin: int, end: int) -> list[int]:
            return [int(np.atleast_1d(descs[at % CHUNKS])[0]) for at in range(begin, end)]

        chunks = between(shared.fill_descs, int(shared.fill[CONSUMER]), int(words[R_FILL]))
        chunks += between(shared.receive_descs, int(words[R_RECEIVED]), int(shared.receive[PRODUCER]))
        away = [*self.in_flight, *between(shared.send_descs, int(shared.send[CONSUMER]), int(words[R_SENT]))]
        away += between(shared.complete_descs, int(words[R_COMPLETED]), int(shared.complete[PRODUCER]))
        units = [address // CHUNK for address in chunks]
        units += [address // CHUNK for address in away if address < CHUNKS * CHUNK]
        slots = Counter(
            (address // CHUNK - CHUNKS) // SLOT_CHUNKS for address in away if address >= CHUNKS * CHUNK
        )
        assert slots == Counter({slot: int(n) for slot, n in enumerate(ring.pieces) if n})
        units += [CHUNKS + slot for slot in slots]
        units += ring.free[: words[R_FREE]].tolist()
        units += [CHUNKS + slot for slot in ring.free_slots[: words[R_FREE_SLOTS]].tolist()]
        held = ring.held[: words[R_HELD]]
        units += held[held != NONE].tolist()
        assert (ring.held[words[R_HELD] :] == NONE).all()
        assert sorted(units) == list(range(UNITS))


def graph(kernel: Kernel, n: int, choice: random.Random) -> list[bytes]:
    """Do to the vector whatever a graph may do, and some things that it must not. Returns what shall be sent."""
    frame = kernel.frame
    shall: list[bytes] = []
    for record in frame.packets[:n]:
        record["outcome"] = choice.choice(list(Outcome)[1:])
        grown = choice.choice([0, 0, 20, 64])
        record["start"] -= grown
        record["length"] += grown
        record["length"] += choice.randrange(int(record["room"]) + grown - int(record["length"]) + 1) % 129
        if choice.random() < 0.05:
            record["start"] = choice.choice([0, len(frame.data) - 5, int(frame.meta[META_HOLD_BASE]) - 30])
    appended = choice.choice([0, 0, 1, 5, 64])
    for i in range(n, min(n + appended, FRAME_SIZE)):
        start = int(frame.meta[META_HOLD_BASE]) + (i - n) * HOLD_BYTES + 64
        length = choice.choice([60, 4096, 4097, 9216])
        frame.data[start : start + length] = choice.randrange(256)
        frame.packets[i] = 0
        frame.packets[i]["start"], frame.packets[i]["length"] = start, length
        frame.packets[i]["outcome"] = Outcome.TRANSMIT
        n += 0
    frame.meta[META_COUNT] = min(n + appended, FRAME_SIZE)
    for record in frame.packets[: int(frame.meta[META_COUNT])]:
        if record["outcome"] in (Outcome.TRANSMIT, Outcome.PASS):
            start = int(record["start"])
            shall.append(frame.data[start : start + int(record["length"])].tobytes())
    return shall


STEP = st.one_of(
    st.tuples(st.just("arrive"), st.sampled_from([60, 1514, 3712, 3713, 3840, 3841, 9000, 65_549, 70_000])),
    st.tuples(st.just("nonsense"), st.just(60)),
    st.tuples(st.just("vector"), st.integers(0, 1 << 16)),
    st.tuples(st.just("lost"), st.just(0)),
    st.tuples(st.just("take"), st.integers(1, 300)),
    st.tuples(st.just("complete"), st.integers(1, 300)),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(STEP, st.integers(1, 40)), min_size=1, max_size=25))
def test_every_unit_has_one_owner_and_what_is_sent_is_right(steps: list[tuple[tuple[str, int], int]]) -> None:
    kernel = Kernel()
    shall: list[bytes] = []
    received: list[bytes] = []
    put: list[bytes] = []
    try:
        receive(kernel.ring, kernel.frame)
        for (what, argument), repeat in steps:
            if what in ("arrive", "nonsense"):
                for i in range(repeat):
                    packet = random.Random(argument + i).randbytes(argument)
                    if kernel.arrive(packet, what == "nonsense") and what == "arrive" and argument < 69_249:
                        put.append(packet)
            elif what == "take":
                kernel.take(argument)
            elif what == "complete":
                kernel.complete(argument)
            else:
                n = receive(kernel.ring, kernel.frame)
                for record in kernel.frame.packets[:n]:
                    start = int(record["start"])
                    received.append(kernel.frame.data[start : start + int(record["length"])].tobytes())
                    assert record["room"] >= record["length"] + 128
                if what == "vector":
                    kernel.audit()
                    shall += graph(kernel, n, random.Random(argument))
                    wanted = kernel.frame.meta[META_COUNT]
                    sent, failed = transmit(kernel.ring, kernel.frame)
                    assert sent + failed <= wanted and kernel.frame.meta[META_COUNT] == 0
                # "lost": the next `receive` takes the buffers back
            kernel.audit()
        for _ in range(3):
            kernel.take(10_000)
            kernel.complete(10_000)
            received += [b"rest"] * receive(kernel.ring, kernel.frame)
        transmit(kernel.ring, kernel.frame)
        kernel.audit()
        remaining = iter(put)
        assert all(any(packet == each for each in remaining) for packet in received if packet != b"rest")
        left = iter(shall)
        assert all(any(packet == each for each in left) for packet in kernel.sent), "changed, or out of order"
    finally:
        kernel.close()


def test_cut_and_nonsense_are_counted() -> None:
    kernel = Kernel()
    try:
        receive(kernel.ring, kernel.frame)
        assert (
            kernel.arrive(bytes(69_248))
            and kernel.arrive(bytes(69_249))
            and kernel.arrive(b"x", nonsense=True)
        )
        assert receive(kernel.ring, kernel.frame) == 1
        assert kernel.frame.packets[0]["length"] == 69_248
        assert kernel.ring.stats[S_CUT] == kernel.ring.stats[S_NONSENSE] == 1
        kernel.audit()
    finally:
        kernel.close()


def test_a_vector_ends_where_slots_do() -> None:
    """Long packets wait in the ring, in order, until others of their kind are on their way."""
    kernel = Kernel()
    try:
        receive(kernel.ring, kernel.frame)
        packets = [random.Random(i).randbytes(9000) for i in range(SLOTS + 2)]
        assert all(map(kernel.arrive, packets))
        got = []
        for expected in (SLOTS, 2):
            n = receive(kernel.ring, kernel.frame)
            assert n == expected
            for record in kernel.frame.packets[:n]:
                got.append(kernel.frame.data[int(record["start"]) :][:9000].tobytes())
                record["outcome"] = Outcome.TRANSMIT
            transmit(kernel.ring, kernel.frame)
            assert receive(kernel.ring, kernel.frame) == 0, "all slots are on their way"
            kernel.take(100)
            kernel.complete(1000)
        assert got == kernel.sent == packets
        kernel.audit()
    finally:
        kernel.close()
