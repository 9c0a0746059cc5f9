"""What the node has, by events and, when the kernel has thrown events away, by reading everything."""

from __future__ import annotations

import socket
from ipaddress import ip_address

import pytest
from pyroute2 import IPRoute

from kuproxy.steering.namespace import PrivateNamespace
from kuproxy.steering.node import NodeWatch

pytestmark = pytest.mark.netns

_SO_RCVBUFFORCE = 33


@pytest.fixture
def namespace():
    made = PrivateNamespace.create()
    yield made
    made.close()


def test_what_the_kernel_threw_away_is_read_anew(namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Events that were queued before are older than what is read, and others come while it is read."""

    def inside() -> None:
        with IPRoute() as netlink:
            netlink.link("set", index=1, state="up")
            watch = NodeWatch(netlink)
            watch._events._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 2048)

            def change(command: str, number: int) -> None:
                netlink.addr(command, index=1, address=f"198.51.100.{number}", prefixlen=32)

            # The first of these events is queued; that the address went is among those that are lost.
            for number in range(1, 21):
                for command in ("add", "del"):
                    change(command, number)
            change("add", 100)
            read_all = watch._read_all

            def read_while_more_comes() -> None:
                read_all()
                if 101 not in seen:
                    seen.add(101)
                    change("add", 101)

            seen: set[int] = set()
            monkeypatch.setattr(watch, "_read_all", read_while_more_comes)
            while watch.poll():
                pass
            assert seen, "no event was lost"
            assert watch.addresses == {ip_address("198.51.100.100"), ip_address("198.51.100.101")}
            change("del", 100)
            assert watch.poll()
            assert watch.addresses == {ip_address("198.51.100.101")}
            watch.close()

    namespace.run(inside)
