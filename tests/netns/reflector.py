"""The dumbest of workers: reads ku1, rewrites addresses and ports by a list, sends back, and remembers it all.

A stand-in for the data plane, in plain Python, with checksums computed anew for each packet.
"""

from __future__ import annotations

import select
import socket
import struct
import threading
from dataclasses import dataclass, field
from ipaddress import ip_address

from kuproxy.steering.links import KU0_MAC, KU1
from kuproxy.steering.namespace import PrivateNamespace
from steering.model import Address, Packet, parse

_PACKET_OUTGOING = 4
_ETH_P_ALL = 0x0003
End = tuple[str, int]  # address and port


@dataclass
class Reflector:
    """`services`: (protocol, VIP, port) → (pod, port). What is neither for a VIP nor from a pod goes back as it is.

    `silent`: reads and remembers, sends nothing.
    """

    namespace: PrivateNamespace
    services: dict[tuple[int, str, int], End] = field(default_factory=dict)
    silent: bool = False
    seen: list[bytes] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._flows: dict[tuple[int, Address, int, Address, int], tuple[Address, int]] = {}
        self._socket = self.namespace.run(self._open)
        self._ending = False
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    @staticmethod
    def _open() -> socket.socket:
        opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        opened.bind((KU1, _ETH_P_ALL))
        return opened

    def close(self) -> None:
        self._ending = True
        self._thread.join()
        self._socket.close()

    @property
    def packets(self) -> list[Packet | None]:
        return [parse(frame) for frame in self.seen]

    def _work(self) -> None:
        while not self._ending:
            if not select.select([self._socket], [], [], 0.05)[0]:
                continue
            frame, where = self._socket.recvfrom(65536)
            if where[2] == _PACKET_OUTGOING:
                continue
            self.seen.append(frame)
            if not self.silent:
                self._socket.send(self._translate(frame))

    def _translate(self, frame: bytes) -> bytes:
        mac = bytes.fromhex(KU0_MAC.replace(":", ""))
        packet = parse(frame)
        if packet is None or packet.fragment or packet.protocol not in (6, 17):
            return mac + frame[6:]
        source, destination = (
            (packet.source, packet.source_port),
            (packet.destination, packet.destination_port),
        )
        service = self.services.get((packet.protocol, str(destination[0]), destination[1]))
        if service is not None:
            pod = ip_address(service[0]), service[1]
            self._flows[packet.protocol, *pod, *source] = destination
            destination = pod
        else:
            source = self._flows.get((packet.protocol, *source, *destination), source)
        return mac + frame[6:14] + rewrite(frame[14:], source, destination)


def rewrite(packet: bytes, source: tuple[Address, int], destination: tuple[Address, int]) -> bytes:
    """New addresses and ports in a TCP or UDP packet without extension headers, and new checksums."""
    ip = bytearray(packet)
    addresses = source[0].packed + destination[0].packed
    if source[0].version == 4:
        start, protocol = (ip[0] & 15) * 4, ip[9]
        del ip[struct.unpack_from(">H", ip, 2)[0] :]
        ip[12:20] = addresses
        ip[10:12] = bytes(2)
        ip[10:12] = checksum(bytes(ip[:start]))
    else:
        start, protocol = 40, ip[6]
        ip[8:40] = addresses
    struct.pack_into(">HH", ip, start, source[1], destination[1])
    place = start + (16 if protocol == 6 else 6)
    ip[place : place + 2] = bytes(2)
    length = len(ip) - start
    ip[place : place + 2] = checksum(addresses + struct.pack(">II", length, protocol) + bytes(ip[start:]))
    return bytes(ip)


def checksum(data: bytes) -> bytes:
    """RFC 1071; never zero, which UDP would take for none."""
    data += bytes(len(data) % 2)
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return struct.pack(">H", (~total & 0xFFFF) or 0xFFFF)
