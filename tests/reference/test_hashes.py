"""The hash functions, against values from elsewhere."""

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

import packets
from kuproxy.reference import crc32c, flow_hash, xxh64_word


def test_crc32c_check_value():
    # The check value of CRC-32/ISCSI, with the register preset and inverted as that definition says.
    assert crc32c(b"123456789", 0xFFFFFFFF) ^ 0xFFFFFFFF == 0xE3069283


@given(st.binary(max_size=64))
def test_crc32c_agrees_with_scapy(data):
    from scapy.layers.sctp import crc32c as scapy_crc32c

    ours = crc32c(data, 0xFFFFFFFF) ^ 0xFFFFFFFF
    assert ours.to_bytes(4, "little") == scapy_crc32c(data).to_bytes(4, "big")


@given(st.binary(min_size=8, max_size=40), st.binary(min_size=40, max_size=40))
def test_crc32c_is_linear(a, b):
    a = a.ljust(40, b"\0")
    both = bytes(x ^ y for x, y in zip(a, b, strict=True))
    assert crc32c(both) == crc32c(a) ^ crc32c(b)


def test_flow_hash_golden():
    assert flow_hash(ip_address("40.0.0.1"), ip_address("90.0.0.1"), 10001, 3306) == 932283424


@pytest.mark.parametrize("version", [4, 6])
def test_flow_hash_sees_every_field(version):
    one, two = ("40.0.0.1", "40.0.0.2") if version == 4 else ("4000::1", "4000::2")
    one, two = ip_address(one), ip_address(two)
    hashes = {
        flow_hash(one, two, 1, 2),
        flow_hash(two, one, 1, 2),
        flow_hash(one, two, 2, 1),
        flow_hash(one, two, 1, 1),
        flow_hash(one, two),
    }
    assert len(hashes) == 5


# From the xxhash package: xxh64(word.to_bytes(8, "little"), seed=0x9e3779b97f4a7c13).
@pytest.mark.parametrize(
    ("word", "expected"),
    [
        (0, 0x6F06F901BFA27892),
        (1, 0x4A67795370639BA2),
        (0x0100000A00000000, 0xBC30F861DA483441),
        (0xFFFFFFFFFFFFFFFF, 0x338F9103FD09985C),
    ],
)
def test_xxh64_word(word, expected):
    assert xxh64_word(word) == expected


def test_builders_share_the_polynomial():
    assert packets.sctp_crc(b"123456789") == (0xE3069283).to_bytes(4, "little")
