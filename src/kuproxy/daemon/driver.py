"""The choice of the driver for live traffic, as the user makes it, and what it comes to on this node."""

from __future__ import annotations

import socket
from typing import Literal, get_args

import msgspec

from kuproxy.engine.wiring import DriverKind
from kuproxy.errors import PrivilegeError

__all__ = ["DEFAULT_DRIVER", "KINDS", "MODES", "DriverChoice", "Kind", "Mode"]

Kind = Literal["auto", "af_packet", "af_xdp"]
Mode = Literal["auto", "native", "generic"]
KINDS: tuple[str, ...] = get_args(Kind)
MODES: tuple[str, ...] = get_args(Mode)


class DriverChoice(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[driver]`: `kind`, and for AF_XDP where its program runs."""

    kind: Kind = "auto"
    mode: Mode = "auto"  # native if the interface can, else generic

    def resolved(self) -> DriverKind:
        """The driver to use.

        The workers' interface is a veth of our own.  There AF_PACKET carried five times the TCP traffic of AF_XDP (one
        stream over two busy cores: 2.4 against 0.47 Gb/s; seven times on idle ones), because it takes segments of
        64 KiB whole, AF_XDP single packets.  So `auto` is AF_PACKET, wherever the kernel has it.
        """
        if self.kind != "auto":
            return DriverKind(self.kind)
        return DriverKind.AF_PACKET if _has_packet_sockets() else DriverKind.AF_XDP


DEFAULT_DRIVER = DriverChoice()


def _has_packet_sockets() -> bool:
    """Whether the kernel was built with CONFIG_PACKET; without the privilege to ask, the one needed anyway is named."""
    try:
        socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0).close()
    except PermissionError as error:
        raise PrivilegeError("live traffic needs CAP_NET_RAW and CAP_NET_ADMIN (or root)") from error
    except OSError:
        return False
    return True
