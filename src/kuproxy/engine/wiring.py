"""Which driver a worker shall use: a value that control chooses and a worker is started with."""

from dataclasses import dataclass
from enum import StrEnum

__all__ = ["AF_PACKET", "DriverKind", "Wiring"]


class DriverKind(StrEnum):
    """The drivers for live traffic, by their names in the table of drivers."""

    AF_PACKET = "af_packet"
    AF_XDP = "af_xdp"


@dataclass(frozen=True, slots=True)
class Wiring:
    """Which driver, and what it needs beside the interface."""

    kind: str = DriverKind.AF_PACKET
    xdp_mode: str = ""  # drivers.af_xdp.XdpMode, in which the program is attached
    sockets_fd: int = -1  # the XSKMAP in which an AF_XDP socket is registered


AF_PACKET = Wiring()
