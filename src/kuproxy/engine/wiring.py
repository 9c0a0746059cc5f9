"""Which driver a worker shall use: a value that control chooses and a worker is born with."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

__all__ = ["AF_PACKET", "DriverKind", "Wiring"]


class DriverKind(StrEnum):
    """The drivers for live traffic, by their names in the table of drivers."""

    AF_PACKET = "af_packet"
    AF_XDP = "af_xdp"


# What a worker is handed for its driver, in this order: the sockets for receiving and sending; or an AF_XDP socket, one
# to ask about its interface, and the XSKMAP in which it is to be registered.
_HANDED = {DriverKind.AF_PACKET: ("rx", "tx"), DriverKind.AF_XDP: ("xdp", "probe", "xskmap")}


@dataclass(frozen=True, slots=True)
class Wiring:
    """Which driver, and what it needs beside the interface."""

    kind: str = DriverKind.AF_PACKET
    xdp_mode: str = ""  # drivers.af_xdp.XdpMode, in which the program is attached

    @property
    def handed(self) -> tuple[str, ...]:
        """Names of the descriptors that a worker gets for its driver."""
        return _HANDED[DriverKind(self.kind)]

    @property
    def lasting(self) -> bool:
        """Whether another process can go on with the sockets of one that has died.

        A UMEM is memory of the process that has registered it, so AF_XDP sockets serve one worker each.
        """
        return self.kind == DriverKind.AF_PACKET


AF_PACKET = Wiring()
