"""The stock of AF_XDP sockets: who may use them, and what happens when there are none left."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from collections.abc import Iterator

import pytest

from kuproxy.daemon import xdp_sockets
from kuproxy.daemon.xdp_sockets import XdpSockets
from kuproxy.errors import HandoverError
from kuproxy.keeper.vault import Vault
from netns.lab import Host

pytestmark = pytest.mark.netns

_AF_XDP, _SIOCGIFINDEX = 44, 0x8933


class Kept(Vault):
    """A vault whose keeper is this object: what outlives a control process is in `held`."""

    def __init__(self, held: dict[str, int]) -> None:
        super().__init__()
        self.held = held
        self._kept = {name: os.dup(fd) for name, fd in held.items()}

    def keep(self, fds: dict[str, int]) -> None:  # type: ignore[override]
        self.held |= {name: os.dup(fd) for name, fd in fds.items()}

    def drop(self, *names: str) -> None:
        super().drop(*names)
        for name in names:
            os.close(self.held.pop(name))


@pytest.fixture
def host() -> Iterator[Host]:
    made = Host()
    try:
        made.sh("ip link add only0 type veth peer name far0")
        yield made
    finally:
        made.close()


def test_each_is_given_once_and_belongs_to_its_namespace(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xdp_sockets, "SPARES", 2)
    vault = Kept({})
    map_fd = os.memfd_create("map")
    stock = host.run(XdpSockets.fill, "only0", 1, map_fd, vault)
    assert len(stock) == 3 and len(vault.held) == 4
    handed = stock.take()
    assert len(vault.held) == 3, "the vault does not hold what a worker is going to bind"
    probe = socket.socket(fileno=handed["probe"])
    xdp = socket.socket(_AF_XDP, socket.SOCK_RAW, 0, fileno=handed["xdp"])
    assert xdp.getsockopt(socket.SOL_SOCKET, socket.SO_DOMAIN) == _AF_XDP
    with pytest.raises(OSError, match="no interface"):
        socket.if_nametoindex("only0")
    fcntl.ioctl(probe, _SIOCGIFINDEX, struct.pack("16s24x", b"only0"))  # there, whoever asks
    xdp.close()
    probe.close()
    os.close(handed["xskmap"])

    successor_vault = Kept(vault.held)
    assert XdpSockets.are_left(successor_vault)
    successor = XdpSockets.adopt(map_fd, successor_vault)
    assert len(successor) == 2
    for _ in range(2):
        for fd in successor.take().values():
            os.close(fd)
    with pytest.raises(HandoverError, match="no AF_XDP socket is left for another worker"):
        successor.take()
    assert XdpSockets.are_left(Kept(vault.held)), "a stock that is used up is not filled again"
    successor.close()
    assert not vault.held
    os.close(map_fd)
