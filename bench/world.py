"""A data plane to measure: tables, one worker, a frame, and the control that fills them."""

import functools
from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network

import numpy as np

from bench import loops
from bench.traffic import POD4, POD_PORT, VIP4, VIP_PORT
from kuproxy.codes import Encap, InterfaceFlag, Protocol, VipType
from kuproxy.control.compile import Compiler
from kuproxy.control.store import Store
from kuproxy.dataplane import flow_table
from kuproxy.dataplane.layout import FRAME_SIZE, HOLD_ROOM, Frame, make_frame
from kuproxy.drivers._slots import slot_bytes
from kuproxy.engine.local import LocalEngine
from kuproxy.model.vip import Pod, Vip, VipKey

NOW = 1000  # ticks; the clock stands still while a case runs
TIMEOUT_S = 4000  # no flow expires within a case
POD_INTERFACE = 1  # where replies come in
# By kind of VIP: family of the clients, and what its packets become.
KINDS = {
    "nat44": (4, VipType.IP4_NAT44, Encap.NAT),
    "nat66": (6, VipType.IP6_NAT66, Encap.NAT),
    "nat64": (6, VipType.IP6_NAT64, Encap.NAT),
    "gre4": (4, VipType.IP4_NAT44, Encap.GRE),
}
_POOL = ip_network("198.18.0.0/24")  # what IPv6 clients are called at IPv4 pods
_NAT46 = IPv6Network("64:ff9b:1::/96")


def pod(family: int, number: int) -> Pod:
    """The pod with this number."""
    return Pod(IPv4Address(POD4 + number) if family == 4 else IPv6Address("2001::") + number)


def make_vip(family: int, number: int, pods: Iterable[int], new_len: int, kind: str = "") -> Vip:
    """VIP `number` (UDP, one port) with these pods, of one of KINDS, nat44 or nat66 by default."""
    family, of_type, encap = KINDS[kind or ("nat44" if family == 4 else "nat66")]
    address = IPv4Address(VIP4 + number) if family == 4 else IPv6Address("9000::") + number
    return Vip(
        VipKey(ip_network(address), Protocol.UDP, VIP_PORT),
        of_type,
        target_port=POD_PORT if encap is Encap.NAT else VIP_PORT,
        new_len=new_len,
        pods=tuple(pod(int(of_type.pod_family), n) for n in pods),
        encap=encap,
    )


def many_vips(count: int, pods_each: int = 1, new_len: int = 16, family: int = 4) -> Iterator[Vip]:
    """VIPs 1 ... count, each with its own pods."""
    for n in range(1, count + 1):
        yield make_vip(family, n, range(n * pods_each, (n + 1) * pods_each), new_len)


@functools.lru_cache(maxsize=4)
def _frame(row_bytes: int) -> tuple[Frame, int]:
    """A frame with a slot for every record; the drivers' own have BATCH, and 64 records for released fragments."""
    stride = slot_bytes(row_bytes)
    return make_frame(np.zeros(FRAME_SIZE * stride + HOLD_ROOM, np.uint8)), stride


class World:
    """One worker with 2^log2_buckets buckets, and these VIPs."""

    def __init__(self, log2_buckets: int, vips: Iterable[Vip]):
        self.engine = LocalEngine(log2_buckets)
        self.compiler = Compiler(self.engine.tables, decrement_ttl=True, any_node_address=False)
        self.store = Store()
        self.compiler.set_timeout(TIMEOUT_S)
        self.compiler.set_translation(_NAT46, _POOL, (1024, 65535), 0)
        self.compiler.set_tunnel_sources(ip_address("192.0.2.1"), None)
        self.compiler.set_interface(POD_INTERFACE, int(InterfaceFlag.NAT4_IN | InterfaceFlag.NAT6_IN))
        self.publish(vips)

    def drive(
        self,
        rows: np.ndarray,
        packets: int,
        *,
        stage: int = loops.WHOLE,
        vector: int = 128,
        interface: int = 0,
        payload: np.ndarray = loops.NO_PAYLOAD,
        first: int = 0,
    ) -> int:
        """Send packets (see loops.drive); returns the row that would be next."""
        frame, stride = _frame(loops.ROW + len(payload))
        tables, state = self.engine.tables, self.engine.state
        flat = rows.reshape(-1)
        return loops.drive(
            frame, tables, state, flat, payload, first, packets, vector, stride, interface, stage, NOW
        )

    def forwarded(self, rows: np.ndarray, now: int = NOW) -> np.ndarray:
        """The rows as they leave the graph."""
        frame, stride = _frame(loops.ROW)
        out = np.zeros_like(rows)
        tables, state = self.engine.tables, self.engine.state
        flat = rows.reshape(-1)
        loops.collect(frame, tables, state, flat, loops.NO_PAYLOAD, out.reshape(-1), stride, now)
        return out

    def publish(self, vips: Iterable[Vip]) -> None:
        """Make these all the VIPs there are, and let the worker see them."""
        self.compiler.apply(self.store.replace("bench", vips))
        self.engine.acknowledge()

    def collect(self) -> int:
        """Let control free what no flow refers to any more."""
        state = self.engine.state
        freed = self.compiler.collect(self.engine.acknowledged(), lambda index: int(state.pod_refs[index]))
        self.compiler.collect(self.engine.acknowledged(), lambda index: int(state.pod_refs[index]))
        return freed

    def flush(self) -> int:
        """Forget every flow."""
        return int(flow_table.flush(self.engine.state))
