"""How a worker's packets come and go: the driver that it was told to use, and the loop that was compiled for it."""

from collections.abc import Callable
from functools import partial

from kuproxy.drivers._live import LiveDriver
from kuproxy.drivers.af_packet import AfPacketDriver
from kuproxy.drivers.af_xdp import AfXdpDriver, XdpMode
from kuproxy.engine.loop import forward_af_packet, forward_af_xdp
from kuproxy.engine.wiring import DriverKind, Wiring
from kuproxy.steering.bpf import put_socket

__all__ = ["open_way"]


def open_way(
    wiring: Wiring, device: str, destination_mac: bytes, source_mac: bytes, queue: int
) -> tuple[LiveDriver, Callable[..., int]]:
    """The open driver, and its loop (frame, tables, state, ring, worker).

    With AF_XDP only packets may come that their sender has finished.  Raises DriverError, PrivilegeError or
    SteeringError.
    """
    if wiring.kind == DriverKind.AF_PACKET:
        return (
            AfPacketDriver(device, destination_mac=destination_mac, source_mac=source_mac),
            forward_af_packet,
        )
    driver = AfXdpDriver(
        device,
        queue=queue,
        mode=XdpMode(wiring.xdp_mode),
        whole=True,
        register=partial(put_socket, wiring.sockets_fd, queue),
        destination_mac=destination_mac,
        source_mac=source_mac,
    )
    return driver, forward_af_xdp
