"""Every packet, however broken, ends in exactly one outcome, with a counted reason, equal to the reference's.

`tests/test_modes.py` runs this file once more with bounds checking on, and with the compiler off.
"""

import random
import struct

import pytest

import packets
from differential.plane import CompiledPlane
from differential.strategies import Config
from kuproxy.codes import Outcome, Protocol, Reason, VipType
from kuproxy.dataplane._jit import COMPILED
from kuproxy.dataplane.layout import BATCH
from kuproxy.model.vip import Pod, Vip, VipKey, parse_address, parse_prefix
from kuproxy.reference import Reference, RefPacket

SEEDS = 4 if COMPILED else 1


def worlds():
    """A compiled plane and a reference that take everything for a VIP, or for a reply."""
    plane, reference = CompiledPlane(Config()), Reference()
    for each in (plane, reference):
        each.mark_interface(1, True, True)
        for prefix, kind, pod in (
            ("0.0.0.0/0", VipType.IP4_NAT44, "10.0.0.1"),
            ("::/0", VipType.IP6_NAT66, "2001::2"),
        ):
            each.set_vip(
                Vip(VipKey(parse_prefix(prefix), Protocol.ANY, 0), kind, pods=(Pod(parse_address(pod)),))
            )
    return plane, reference


def check(broken: list[bytes]) -> set[Reason]:
    """Feed both; returns the reasons that were met."""
    plane, reference = worlds()
    met = set()
    vector = [RefPacket(data, interface=number % 2) for number, data in enumerate(broken)]
    for first in range(0, len(vector), BATCH):
        part = vector[first : first + BATCH]
        now = (
            100 + first
        )  # what a vector's fragments have taught is forgotten by the next: the table is bounded
        results = plane.receive(part, now)
        assert results == reference.receive(part, now)
        met |= {result.reason for result in results}
    outcomes = plane.outcomes()
    assert outcomes[Outcome.NONE] == 0
    assert sum(outcomes.values()) == len(broken)
    return met


@pytest.mark.parametrize("name", packets.SAMPLES)
def test_every_truncation_of_every_valid_packet(name):
    data = packets.SAMPLES[name]
    met = check([data[:length] for length in range(min(len(data), 200))])
    assert met & {Reason.TRUNCATED_IPV4, Reason.TRUNCATED_IPV6, Reason.NOT_IP, Reason.TRUNCATED_ETHERNET}


@pytest.mark.parametrize("name", packets.SAMPLES)
def test_every_value_of_the_length_and_version_fields(name):
    data = packets.SAMPLES[name]
    l3, l4, _, _ = packets.headers(data)
    broken = []
    for value in range(256):
        broken.append(data[:l3] + bytes([value]) + data[l3 + 1 :])  # version, header length
    at = l3 + (2 if data[l3] >> 4 == 4 else 4)
    for value in (0, 1, 7, 19, 20, 21, 39, 40, 41, len(data) - l3, len(data) - l3 + 1, 0x7FFF, 0xFFFF):
        broken.append(data[:at] + struct.pack(">H", value) + data[at + 2 :])
    for offset in (4, 12):
        for value in range(0, 256, 3):  # UDP length, TCP data offset
            broken.append(data[: l4 + offset] + bytes([value]) + data[l4 + offset + 1 :])
    check([with_header_checksum(one, l3) for one in broken] + broken)


def with_header_checksum(data: bytes, l3: int) -> bytes:
    """The same with a right IPv4 header checksum, so that other checks are reached."""
    if data[l3] >> 4 != 4:
        return data
    end = l3 + (data[l3] & 15) * 4
    header = bytearray(data[l3:end])
    if len(header) < 12:
        return data
    header[10:12] = bytes(2)
    header[10:12] = struct.pack(">H", packets.internet_checksum(bytes(header)))
    return data[:l3] + bytes(header) + data[end:]


def test_loops_and_chains_of_extension_headers():
    l3 = 14
    head = packets.frame(packets.udp("1::1", "2::2", 1, 2))[: l3 + 40]
    chains = []
    for kind in (0, 43, 44, 60):
        for following in (0, 43, 44, 60, 17, 59, 255):
            for count in range(1, 12):
                for size in (0, 1, 31, 255):
                    chain = bytearray()
                    for _ in range(count):
                        chain += bytes([kind, size]) + bytes(6 + (size * 8 if size < 32 else 0))
                    chain[-8 if size == 0 else 0] = following
                    packet = bytearray(head)
                    packet[l3 + 6] = kind
                    packet[l3 + 4 : l3 + 6] = struct.pack(">H", len(chain))
                    chains.append(bytes(packet + chain))
    met = check([chain for chain in chains if len(chain) < 9000])
    assert {Reason.EXTENSION_HEADER_LIMIT, Reason.TRUNCATED_EXTENSION} <= met


@pytest.mark.parametrize("seed", range(SEEDS))
def test_random_damage(seed):
    rng = random.Random(seed)
    samples = list(packets.SAMPLES.values())
    broken = []
    for _ in range(2000 if COMPILED else 300):
        data = bytearray(rng.choice(samples))
        for _ in range(rng.choice((1, 1, 2, 5, 20))):
            data[rng.randrange(len(data))] = rng.randrange(256)
        broken.append(with_header_checksum(bytes(data), 14) if rng.random() < 0.7 else bytes(data))
    check(broken)
