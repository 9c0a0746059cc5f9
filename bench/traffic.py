"""Rows of 64-byte UDP frames, made whole arrays at a time: a million packets in a second.

An IPv6 frame of this kind has 62 bytes of headers; both families are sent as 64 bytes, with 22 and 2 bytes of payload.
"""

import numpy as np

from bench.loops import ROW

CLIENT4, VIP4, POD4 = 0x28000001, 0x5A000000, 0x0A000000  # 40.0.0.1, 90.0.0.0, 10.0.0.0
VIP_PORT, POD_PORT = 3306, 3307  # they differ, so that ports are rewritten too
PORTS_PER_CLIENT = 50_000
_MACS = bytes.fromhex("020000000002" "020000000001")
_UDP = 17


def _put(rows: np.ndarray, at: int, width: int, values: np.ndarray | int) -> None:
    """Big-endian numbers into bytes at ... at + width of every row."""
    for byte in range(width):
        rows[:, at + byte] = (np.asarray(values) >> 8 * (width - 1 - byte)) & 0xFF


def _sum16(rows: np.ndarray, start: int, end: int) -> np.ndarray:
    """Sum of the big-endian 16-bit words of rows[:, start:end], not folded."""
    words = np.ascontiguousarray(rows[:, start:end]).view(">u2")
    return words.sum(axis=1, dtype=np.int64)


def _checksum(total: np.ndarray) -> np.ndarray:
    for _ in range(3):
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def udp_rows(family: int, flows: int, vips: int = 1, first_vip: int = 1, payload: int = 0) -> np.ndarray:
    """uint8[flows, ROW]: one frame a flow, spread evenly over VIPs first_vip ..., in an order without locality.

    `payload` more bytes of zeros follow each row on the wire. Checksums are right; that of UDP is never 0.
    """
    flow = np.random.default_rng(1).permutation(flows)
    rows = np.zeros((flows, ROW), np.uint8)
    rows[:, :12] = np.frombuffer(_MACS, np.uint8)
    client = flow // PORTS_PER_CLIENT
    vip = first_vip + flow % vips
    l4 = 34 if family == 4 else 54
    length = ROW + payload - l4
    if family == 4:
        _put(rows, 12, 2, 0x0800)
        rows[:, 14] = 0x45
        _put(rows, 16, 2, 20 + length)
        rows[:, 22], rows[:, 23] = 64, _UDP
        _put(rows, 26, 4, CLIENT4 + client)
        _put(rows, 30, 4, VIP4 + vip)
        _put(rows, 24, 2, _checksum(_sum16(rows, 14, 34)))
        addresses = _sum16(rows, 26, 34)
    else:
        _put(rows, 12, 2, 0x86DD)
        rows[:, 14] = 0x60
        _put(rows, 18, 2, length)
        rows[:, 20], rows[:, 21] = _UDP, 64
        _put(rows, 22, 2, 0x4000)
        _put(rows, 34, 4, 1 + client)
        _put(rows, 38, 2, 0x9000)
        _put(rows, 50, 4, vip)
        addresses = _sum16(rows, 22, 54)
    _put(rows, l4, 2, 1024 + flow % PORTS_PER_CLIENT)
    _put(rows, l4 + 2, 2, VIP_PORT)
    _put(rows, l4 + 4, 2, length)
    checksum = _checksum(addresses + _UDP + length + _sum16(rows, l4, ROW))
    _put(rows, l4 + 6, 2, np.where(checksum == 0, 0xFFFF, checksum))
    return rows


def replies(rows: np.ndarray) -> np.ndarray:
    """What the pods answer to forwarded rows: addresses and ports swapped (which changes no checksum)."""
    answer = rows.copy()
    family = int(rows[0, 14]) >> 4
    start, width, l4 = (26, 4, 34) if family == 4 else (22, 16, 54)
    for at, size in ((start, width), (l4, 2)):
        answer[:, at : at + size] = rows[:, at + size : at + 2 * size]
        answer[:, at + size : at + 2 * size] = rows[:, at : at + size]
    return answer
