"""tayga, a stateless translator between IPv4 and IPv6, as a function from a packet to packets.

It runs in a namespace without a name.  What a packet socket sends on its TUN device tayga reads, what it writes the
socket receives: no route, no address and no rule of the kernel takes part.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from netns.lab import Host
from packets import echo, ip_packet

PROGRAM = "/usr/sbin/tayga"
_DEVICE = "nat64"
_OWN4, _OWN6 = "192.0.2.1", "2001:db8::1"
_ASKING = "192.0.2.2"
_OUTGOING = 4  # PACKET_OUTGOING
_TIMEOUT_S = 5.0


class Tayga:
    """One running tayga. Its own ICMP errors come from `own4` and `own6`."""

    own4, own6 = _OWN4, _OWN6

    def __init__(self, host: Host) -> None:
        self._number = 0
        self._socket = host.run(self._open)

    @staticmethod
    def _open() -> socket.socket:
        opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        opened.bind((_DEVICE, 0x0003))
        opened.settimeout(_TIMEOUT_S)
        return opened

    def _send(self, packet: bytes) -> None:
        self._socket.sendto(packet, (_DEVICE, 0x0800 if packet[0] >> 4 == 4 else 0x86DD))

    def translate(self, packet: bytes) -> list[bytes]:
        """What comes out for one IP packet, in its order.

        tayga works one packet after the other, so all is there when it has answered the ping sent behind it.
        Raises TimeoutError when it does not.
        """
        self._number += 1
        ping = ip_packet(echo(_ASKING, _OWN4, identifier=0x6B75, sequence=self._number))
        pong = ip_packet(echo(_OWN4, _ASKING, identifier=0x6B75, sequence=self._number, reply=True))
        self._send(packet)
        self._send(ping)
        found = []
        while True:
            data, address = self._socket.recvfrom(65536)
            if address[2] == _OUTGOING:
                continue
            if data[12:] == pong[12:]:  # addresses and message
                return found
            found.append(data)

    def close(self) -> None:
        self._socket.close()


@contextlib.contextmanager
def tayga(prefix: str, maps: dict[str, str], mtu: int) -> Iterator[Tayga]:
    """tayga with an RFC 6052 prefix and with static maps from IPv4 to IPv6 addresses, over links of this MTU."""
    lines = [f"tun-device {_DEVICE}", f"ipv4-addr {_OWN4}", f"ipv6-addr {_OWN6}", f"prefix {prefix}"]
    lines += [f"map {four} {six}" for four, six in maps.items()]
    host = Host()
    with tempfile.TemporaryDirectory(prefix="kuproxy-tayga-") as directory:
        config = Path(directory, "tayga.conf")
        config.write_text("".join(f"{line}\n" for line in [*lines, f"data-dir {directory}"]))
        process = None
        try:
            host.sysctl("ipv6/conf/default/disable_ipv6", "1")  # the kernel itself says nothing on the device
            host.sh(f"{PROGRAM} --mktun -c {config}", f"ip link set {_DEVICE} mtu {mtu} up")
            process = host.start(PROGRAM, "--nodetach", "-c", str(config))
            _wait_until_carrier(host, process)
            translator = Tayga(host)
            try:
                yield translator
            finally:
                translator.close()
        finally:
            if process is not None:
                process.terminate()
                process.communicate(timeout=_TIMEOUT_S)
            host.close()


def _wait_until_carrier(host: Host, process: subprocess.Popen[str]) -> None:
    """The device has a carrier from the moment that somebody holds its other end."""
    deadline = time.monotonic() + _TIMEOUT_S
    while "LOWER_UP" not in host.sh(f"ip link show {_DEVICE}"):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, "tayga does not open its device"
        time.sleep(0.02)
