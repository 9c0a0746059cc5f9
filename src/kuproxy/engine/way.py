"""How a worker's packets come and go: the driver that it was told to use, and the loop that was compiled for it."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from functools import partial

import numpy as np

from kuproxy.dataplane.layout import COMMAND_RUN, COMMAND_STOP, T_COMMAND, W_RECEIVE_DROPPED, W_RING, Frame
from kuproxy.drivers import _xdp_umem, af_packet
from kuproxy.drivers._live import LiveDriver
from kuproxy.drivers._xdp_socket import AF_XDP
from kuproxy.drivers.af_packet import R_WORDS, AfPacketDriver
from kuproxy.drivers.af_xdp import AfXdpDriver, XdpMode
from kuproxy.engine.local import LocalEngine
from kuproxy.engine.loop import forward_af_packet, forward_af_xdp
from kuproxy.engine.wiring import DriverKind, Wiring
from kuproxy.steering.bpf import put_socket

__all__ = ["load_loops", "open_way"]


def open_way(
    wiring: Wiring,
    device: str,
    macs: tuple[bytes, bytes],
    queue: int,
    handed: Mapping[str, int],
    header: np.ndarray,
) -> tuple[LiveDriver, Callable[..., int]]:
    """The open driver, and its loop (frame, tables, state, ring, worker, served).

    `macs`: destination and source of what is sent.  `handed`: descriptors by the names in `wiring.handed`, the driver's
    from now on.  `header` is the worker's, where a predecessor has left its place in the ring.  With AF_XDP only
    packets may come that their sender has finished.  Raises DriverError, PrivilegeError or SteeringError.
    """
    destination, source = macs
    if wiring.kind == DriverKind.AF_PACKET:
        packets = AfPacketDriver(
            device,
            destination_mac=destination,
            source_mac=source,
            sockets=(socket.socket(fileno=handed["rx"]), socket.socket(fileno=handed["tx"])),
            words=header[W_RING : W_RING + R_WORDS],
        )
        packets.count_on(int(header[W_RECEIVE_DROPPED]))
        return packets, forward_af_packet
    # The family is told because an AF_XDP socket does not tell it: it knows no getsockname(2).
    taken = socket.socket(AF_XDP, socket.SOCK_RAW, 0, fileno=handed["xdp"])
    frames = AfXdpDriver(
        device,
        queue=queue,
        mode=XdpMode(wiring.xdp_mode),
        whole=True,
        register=partial(put_socket, handed["xskmap"], queue),
        destination_mac=destination,
        source_mac=source,
        sockets=(taken, socket.socket(fileno=handed["probe"])),
    )
    frames.count_on(int(header[W_RECEIVE_DROPPED]))
    return frames, forward_af_xdp


def load_loops(engine: LocalEngine, frame: Frame) -> None:
    """Have every loop compiled, or taken from the cache: one that finds its command word at STOP returns at once."""
    tables, state = engine.tables, engine.state
    tables.header[T_COMMAND] = COMMAND_STOP
    ring = af_packet.make_ring(np.zeros(1, np.int64), 2048, -1, -1, 0, bytes(12))
    forward_af_packet(frame, tables, state, ring, 0, COMMAND_RUN)
    rings = _xdp_umem.plain_rings(2)
    xdp_ring = _xdp_umem.make_ring(rings, (0, 1, 2), chunks=2, slots=1, fd=-1, interface=0, macs=bytes(12))
    forward_af_xdp(frame, tables, state, xdp_ring, 0, COMMAND_RUN)
