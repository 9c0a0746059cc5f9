"""A sender's SCTP checksum that is left to the hardware is completed: the kernel could not be told that it is a CRC."""

import struct

import numpy as np
import pytest

import packets
from kuproxy.drivers._records import complete_sctp


@pytest.mark.parametrize("size", range(0, 20))
@pytest.mark.parametrize("version", [4, 6])
def test_completed_as_rfc_9260_says(size, version):
    source, destination = ("40.0.0.1", "90.0.0.1") if version == 4 else ("4000::1", "9000::1")
    whole = packets.frame(packets.sctp(source, destination, 1000, 5060, bytes(range(size))))
    at = 14 + (20 if version == 4 else 40)
    partial = bytearray(whole)
    partial[at + 8 : at + 12] = b"\xde\xad\xbe\xef"
    vnet = struct.pack("<BBHHHH", 1, 0, 0, 0, at, 8)
    data = np.frombuffer(bytearray(vnet + partial + bytes(16)), np.uint8)
    assert complete_sctp(data, 0, 10, len(partial))
    assert data[10 : 10 + len(whole)].tobytes() == whole
    assert packets.verify_checksums(whole) == []
    assert data[0] == 0, "nothing is left to the kernel"


@pytest.mark.parametrize(("start", "offset"), [(34, 16), (34, 6), (60, 8), (65535, 8)])
def test_everything_else_stays(start, offset):
    data = np.frombuffer(bytearray(struct.pack("<BBHHHH", 1, 0, 0, 0, start, offset) + bytes(60)), np.uint8).copy()
    before = data.copy()
    assert not complete_sctp(data, 0, 10, 60)
    assert (data == before).all()
