"""Packets as bytes, into a frame and out of it again."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kuproxy.codes import PacketFlag
from kuproxy.dataplane.layout import VNET_BYTES, Frame

__all__ = ["LONGEST", "PacketIn", "bytes_of", "put"]

LONGEST = 65_535 + 22  # an IP packet behind an Ethernet header with two tags
ROOM = 16_384  # bytes that an answer may have, at least


@dataclass(frozen=True, slots=True)
class PacketIn:
    """A frame as a driver would deliver it."""

    data: bytes  # from its Ethernet header on
    interface: int = 0
    partial_checksum: bool = False  # its L4 checksum is the pseudo-header's alone
    gso: bool = False  # segments under one header
    room: int = ROOM  # bytes that may be written from its start, for answers; at least its length


def put(frame: Frame, slot: int, start: int, room: int, packet: PacketIn) -> None:
    """Into the slot of the frame whose packet begins at `start` and may take `room` bytes."""
    length, vnet = len(packet.data), start - VNET_BYTES
    frame.data[start : start + length] = np.frombuffer(packet.data, np.uint8)
    frame.packets[slot : slot + 1] = np.zeros(1, frame.packets.dtype)
    record = frame.packets[slot]
    record["start"], record["vnet"], record["length"] = start, vnet, length
    record["room"], record["interface"] = room, packet.interface
    if packet.partial_checksum:
        record["flags"] = int(PacketFlag.VNET | PacketFlag.PARTIAL_CHECKSUM)
    if packet.gso:
        record["flags"] |= int(PacketFlag.GSO)
        # struct virtio_net_hdr: to be checksummed, TCP over IPv4, headers of 34 bytes, segments of 6
        frame.data[vnet:start] = (1, 0, 0, 0, 0, 0, 34, 0, 6, 0)


def bytes_of(frame: Frame, record: np.void) -> bytes:
    """The packet's bytes as they are now."""
    start = int(record["start"])
    return frame.data[start : start + int(record["length"])].tobytes()
