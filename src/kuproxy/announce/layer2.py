"""The speaker for one link: it answers for the addresses of VIPs that it has claimed, and says so when it gets one.

Packet sockets are opened at the start; afterwards the process holds no capability.  When it ends, nobody answers any
more, and another node that can serve claims the address within some seconds.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import select
import signal
import socket
import struct
import sys
import time
from collections.abc import Iterable
from types import FrameType

from kuproxy.announce.claim import Claim
from kuproxy.announce.frames import parse
from kuproxy.announce.link import Link
from kuproxy.announce.settings import Announce
from kuproxy.confine import privilege
from kuproxy.errors import ConfigError, DriverError, Problem
from kuproxy.model.vip import Address, Prefix

__all__ = ["Speaker", "speak"]

_SIOCGIFHWADDR = 0x8927
_ARP, _IPV6 = 0x0806, 0x86DD
_OUTGOING = 4
_PACKET_MR_ALLMULTI = 2  # questions about IPv6 addresses go to a group for each (RFC 4291 section 2.7.1)
_SOL_PACKET, _PACKET_ADD_MEMBERSHIP, _SO_ATTACH_FILTER = 263, 1, 26
# Classic BPF: IPv6 with ICMPv6 types 135 and 136 alone, so that the traffic of VIPs does not wake us.
_DISCOVERY_ONLY = (
    (0x30, 0, 0, 20),  # next header
    (0x15, 0, 4, 58),
    (0x30, 0, 0, 54),  # type
    (0x15, 1, 0, 135),
    (0x15, 0, 1, 136),
    (0x06, 0, 0, 0xFFFF),
    (0x06, 0, 0, 0),
)


class Speaker:
    """Claims on one interface, and what was heard there."""

    def __init__(self, interface: str) -> None:
        """Raises DriverError."""
        try:
            self.sockets = [self._open(interface, kind) for kind in (_ARP, _IPV6)]
            raw = fcntl.ioctl(self.sockets[0], _SIOCGIFHWADDR, struct.pack("16s16x", interface.encode()))
        except OSError as error:
            raise DriverError(f"{interface}: {error.strerror}; CAP_NET_RAW is needed") from None
        self.mac = raw[18:24]
        self.claims: dict[Address, Claim] = {}

    @staticmethod
    def _open(interface: str, kind: int) -> socket.socket:
        opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        if kind == _IPV6:
            program = b"".join(struct.pack("=HBBI", *each) for each in _DISCOVERY_ONLY)
            buffer = ctypes.create_string_buffer(program)
            fprog = struct.pack("@HP", len(_DISCOVERY_ONLY), ctypes.addressof(buffer))
            opened.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, fprog)
            request = struct.pack("=iHH8s", socket.if_nametoindex(interface), _PACKET_MR_ALLMULTI, 0, b"")
            opened.setsockopt(_SOL_PACKET, _PACKET_ADD_MEMBERSHIP, request)
        opened.bind((interface, kind))
        opened.setblocking(False)
        return opened

    def want(self, prefixes: Iterable[Prefix], now: float) -> list[str]:
        """Claim these addresses and no others.  Returns what cannot be: prefixes of more than one address."""
        wanted = {}
        refused = []
        for prefix in prefixes:
            if prefix.prefixlen == prefix.max_prefixlen:
                wanted[prefix.network_address] = prefix
            else:
                refused.append(str(prefix))
        for address in self.claims.keys() - wanted.keys():
            del self.claims[address]
        for address in wanted.keys() - self.claims.keys():
            self.claims[address] = Claim(address, self.mac, now)
        return sorted(refused)

    @property
    def owned(self) -> int:
        return sum(claim.owner for claim in self.claims.values())

    def tick(self, now: float) -> None:
        for claim in self.claims.values():
            self._send(claim.tick(now))

    def receive(self, opened: socket.socket, now: float) -> None:
        """Everything that waits there."""
        while True:
            try:
                frame, address = opened.recvfrom(2048)
            except BlockingIOError:
                return
            except OSError as error:  # the interface is down: nobody asks
                if error.errno != errno.ENETDOWN:
                    raise
                return
            heard = parse(frame) if address[2] != _OUTGOING else None
            claim = self.claims.get(heard.address) if heard is not None else None
            if heard is not None and claim is not None and heard.mac != self.mac:
                self._send(claim.hear(heard, now))

    def _send(self, frames: Iterable[bytes]) -> None:
        for frame in frames:
            try:
                self.sockets[0].send(frame)
            except OSError:
                continue  # a full queue, or the interface is down: the next one goes

    def due(self) -> float:
        return min((claim.due for claim in self.claims.values()), default=float("inf"))


def speak(settings: Announce, socket_path: str) -> None:
    """Until SIGTERM or SIGINT.  Raises KuError."""
    if settings.layer2 is None:
        raise ConfigError(Problem("is not there", field="announce.layer2"))
    speaker, link = Speaker(settings.layer2.interface), Link(settings, socket_path, "layer2")
    privilege.keep_none()
    ending: list[int] = []

    def end(number: int, _frame: FrameType | None) -> None:
        ending.append(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    said: str | None = None
    ask_at, problem = 0.0, ""
    while not ending:
        now = time.monotonic()
        if now >= ask_at:
            wanted = link.ask(settled=True, announced=speaker.owned, problem=problem)
            now = time.monotonic()
            refused = speaker.want(wanted, now)
            problem = f"not single addresses: {', '.join(refused)}" if refused else ""
            ask_at = now + settings.interval_s
            state = link.trouble or problem
            if state != said:
                said = state
                print(f"ku announce: {state or 'in order'}", file=sys.stderr, flush=True)
        speaker.tick(now)
        patience = max(0.0, min(ask_at, speaker.due()) - time.monotonic())
        ready, _, _ = select.select(speaker.sockets, [], [], patience)
        for opened in ready:
            speaker.receive(opened, time.monotonic())
