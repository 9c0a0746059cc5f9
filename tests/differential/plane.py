"""The compiled data plane as the machine sees it: store, compiler and graph, without drivers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from ipaddress import IPv4Address, IPv6Address

import numpy as np

from differential.strategies import Config
from kuproxy.codes import FlowState, InterfaceFlag, Node, Outcome, PacketFlag, PodCounter, Reason, VipCounter
from kuproxy.control.compile import Compiler
from kuproxy.control.report import Baselines
from kuproxy.control.store import Changes, Store
from kuproxy.dataplane.flow_table import is_occupied, source_seen, sweep
from kuproxy.dataplane.layout import (
    BATCH,
    HEADROOM,
    HOLD_ROOM,
    META_COUNT,
    T_FLOW_TIMEOUT,
    T_REJECT_RATE,
    VNET_BYTES,
    Frame,
    WorkerState,
    make_frame,
)
from kuproxy.engine.local import LocalEngine
from kuproxy.engine.memory import many_pod_counters, pod_counters, pod_flows, totals, vip_counters
from kuproxy.errors import TableFullError
from kuproxy.model.config import NAT46_PREFIX
from kuproxy.model.vip import Address, Pod, Prefix, Vip, VipKey
from kuproxy.reference import LiveFlow, RefPacket, Result

SECOND_CHANCE_S = 10
STRIDE = 16384  # a slot: vnet header, packet, and room behind it


def address_of(family: int, hi: int, lo: int) -> Address:
    """From the tables' form."""
    raw = int(hi).to_bytes(8, "little") + int(lo).to_bytes(8, "little")
    return IPv4Address(raw[12:]) if family == 4 else IPv6Address(raw)


class CompiledPlane:
    """`Plane` over a LocalEngine."""

    def __init__(self, config: Config):
        self.engine = LocalEngine(
            config.buckets.bit_length() - 1, config.workers, flow_hash=config.flow_key or None
        )
        self.store = Store()
        self.compiler = Compiler(
            self.engine.tables, decrement_ttl=config.decrement_ttl, any_node_address=config.any_node_address
        )
        self.compiler.set_tunnel_sources(config.ip4_src_address, config.ip6_src_address)
        self.compiler.set_node_addresses(config.node_addresses)
        self.set_origins(config.pod_ranges, config.all_node_addresses)
        self.baselines = Baselines(*self.engine.baselines)
        self.engine.tables.header[T_REJECT_RATE] = config.reject_rate
        self.compiler.set_second_chance(SECOND_CHANCE_S if config.second_chance else 0)
        self.set_timeout(config.timeout_ticks)
        self.set_masquerade(config.masquerade)
        self.compiler.set_translation(
            NAT46_PREFIX, config.nat64_pool, config.nat64_ports, config.translation_mtu
        )
        self.compiler.set_own_addresses(config.own_addresses.values())
        # One for each worker: it keeps the fragments that the worker holds.
        self.frames = [
            make_frame(np.zeros(BATCH * STRIDE + HOLD_ROOM, np.uint8)) for _ in range(config.workers)
        ]

    # -------------------------------------------------------------------------------------------- operators

    def _apply(self, changes: Changes) -> None:
        self.compiler.apply(changes)
        new_pods = self.compiler.take_new_pods()
        self.baselines.note_pods(new_pods, many_pod_counters(self.engine.states, new_pods))
        self.baselines.note(self.compiler.records(), self._counts)
        self.engine.acknowledge()

    def set_vip(self, vip: Vip) -> None:
        self._apply(self.store.update("test", add=[vip]))

    def del_vip(self, key: VipKey) -> None:
        self._apply(self.store.update("test", remove=[key]))

    def close(self) -> None:
        for worker in self.engine.workers:
            worker.fixed.close()
            worker.flows.close()
        self.engine.worker.shared.region.close()
        self.engine.memory.region.close()

    def mark_interface(self, index: int, nat4_in: bool, nat6_in: bool) -> None:
        flags = InterfaceFlag(0)
        if nat4_in:
            flags |= InterfaceFlag.NAT4_IN
        if nat6_in:
            flags |= InterfaceFlag.NAT6_IN
        self.compiler.set_interface(index, int(flags))

    def set_timeout(self, ticks: int, state: FlowState | None = None) -> None:
        for one in FlowState if state is None else [state]:
            self.engine.tables.header[T_FLOW_TIMEOUT + one] = ticks

    def set_masquerade(self, addresses: tuple[Address, ...]) -> None:
        self.compiler.set_masquerade(addresses)

    def set_origins(self, pod_ranges: tuple[Prefix, ...], node_addresses: tuple[Address, ...]) -> None:
        self.compiler.set_pod_ranges(pod_ranges)
        self.compiler.set_node_ranges(node_addresses)

    def flush(self, key: VipKey, address: Address, port: int = 0) -> None:
        self.compiler.flush(key, address, port)

    def end_second_chances(self) -> None:
        """Whenever they began."""
        for now in (0, 20 * SECOND_CHANCE_S):
            self.compiler.end_second_chances(now)
        self.engine.acknowledge()

    def set_buckets(self, buckets: int, now: int) -> None:
        try:
            self.engine.resize(buckets.bit_length() - 1, now)
        except TableFullError as error:
            raise ValueError(str(error)) from None

    def set_flow_key(self, key: bytes, now: int) -> None:
        try:
            self.engine.rehash(key or None, now)
        except TableFullError as error:
            raise ValueError(str(error)) from None

    def collect(self, now: int) -> None:
        for state in self.engine.states:
            sweep(self.engine.tables, state, now, len(state.entries))
        self.compiler.collect(self.engine.acknowledged(), lambda index: pod_flows(self.engine.states, index))

    def sweep(self, now: int) -> None:
        self.engine.maintain(now)

    # ---------------------------------------------------------------------------------------------- packets

    def _put(self, frame: Frame, slot: int, packet: RefPacket) -> None:
        start = slot * STRIDE + HEADROOM
        size = len(packet.data)
        assert size + HEADROOM <= STRIDE
        data = frame.data
        data[start : start + size] = np.frombuffer(packet.data, np.uint8)
        record = frame.packets[slot : slot + 1]
        record[:] = 0
        record["start"] = start
        record["vnet"] = start - VNET_BYTES
        record["length"] = size
        record["room"] = min(packet.room, STRIDE - HEADROOM)
        record["interface"] = packet.interface
        if packet.partial_checksum:
            record["flags"] = int(PacketFlag.VNET | PacketFlag.PARTIAL_CHECKSUM)
        if packet.gso:
            record["flags"] |= int(PacketFlag.GSO)
            data[start - VNET_BYTES : start] = (1, 0, 0, 0, 0, 0, 34, 0, 6, 0)

    def _result(self, frame: Frame, slot: int, keys: dict[int, VipKey]) -> Result:
        record = frame.packets[slot]
        start, length = int(record["start"]), int(record["length"])
        pod = self.engine.tables.pods[record["pod"]]
        return Result(
            Outcome(int(record["outcome"])),
            Reason(int(record["reason"])),
            frame.data[start : start + length].tobytes(),
            keys.get(int(record["vip"])),
            address_of(int(pod["family"]), pod["hi"], pod["lo"]) if record["pod"] else None,
            bool(record["flags"] & PacketFlag.PARTIAL_CHECKSUM),
        )

    def receive(
        self, packets: list[RefPacket], now: int, workers: Sequence[int] | None = None
    ) -> list[Result]:
        """`workers`: whose each packet is; None: the first one's."""
        assert len(packets) <= BATCH
        whose = list(workers or [0] * len(packets))
        own: dict[int, Result] = {}
        released: list[Result] = []
        for worker in sorted(set(whose)):
            places = [place for place, of in enumerate(whose) if of == worker]
            results = self._receive_one([packets[place] for place in places], now, worker)
            own |= zip(places, results, strict=False)
            released += results[len(places) :]
        return [own[place] for place in range(len(packets))] + released

    def _receive_one(self, packets: list[RefPacket], now: int, worker: int) -> list[Result]:
        frame = self.frames[worker]
        for slot, packet in enumerate(packets):
            self._put(frame, slot, packet)
        frame.meta[META_COUNT] = len(packets)
        self.engine.process(frame, now, worker)
        keys = {record.index: record.vip.key for record in self.compiler.records()}
        return [self._result(frame, slot, keys) for slot in range(int(frame.meta[META_COUNT]))]

    # ---------------------------------------------------------------------------------------- what is seen

    def _counts(self, index: int) -> np.ndarray:
        return vip_counters(self.engine.states, index)

    def counters(self) -> Mapping[tuple[Node, Reason], int]:
        counters = totals(self.engine.states).counters
        return {
            (Node(int(node)), Reason(int(reason))): int(counters[node, reason])
            for node, reason in zip(*np.nonzero(counters), strict=True)
        }

    def vip_counters(self) -> Mapping[VipKey, Mapping[VipCounter, int]]:
        result = {}
        for record in self.compiler.records():
            if not record.removed:
                counts = self.baselines.since(record, self._counts)
                result[record.vip.key] = {counter: int(counts[counter]) for counter in VipCounter}
        return result

    def _pod_counts(self, index: int) -> np.ndarray:
        return pod_counters(self.engine.states, index)

    def pod_counters(self) -> Mapping[VipKey, Mapping[Pod, Mapping[PodCounter, int]]]:
        result = {}
        for record in self.compiler.records():
            if not record.removed:
                result[record.vip.key] = {
                    pod: {each: int(counts[each]) for each in PodCounter}
                    for pod, index in (*record.pods.items(), *record.draining.items())
                    for counts in [self.baselines.pod_since(index, self._pod_counts)]
                }
        return result

    def outcomes(self) -> Mapping[Outcome, int]:
        counts = totals(self.engine.states).outcomes
        return {outcome: counts[outcome] for outcome in Outcome}

    def _source(self, flow: np.void, pod: np.void, direct: bool) -> Address:
        """What the client is called at the pod."""
        if direct or flow["family"] == pod["family"]:
            return address_of(int(flow["family"]), *source_seen(self.engine.tables, flow))
        if flow["family"] == 6:
            return IPv4Address(int(flow["source"]).to_bytes(4, "little"))
        client = int(address_of(4, flow["client_hi"], flow["client_lo"]))
        return IPv6Address(int(NAT46_PREFIX.network_address) + client)

    def live_flows(self, now: int) -> list[LiveFlow]:
        return [flow for state in self.engine.states for flow in self._live_flows(state, now)]

    def _live_flows(self, state: WorkerState, now: int) -> list[LiveFlow]:
        tables = self.engine.tables
        keys = {record.index: record.vip.key for record in self.compiler.records() if not record.removed}
        flows = []
        for slot in np.nonzero(state.entries["pod"])[0].tolist():
            if not is_occupied(tables, state, slot, now):
                continue
            entry, flow = state.entries[slot], state.flows[slot]
            pod = tables.pods[entry["pod"]]
            family = int(flow["family"])
            flows.append(
                LiveFlow(
                    int(flow["protocol"]),
                    address_of(family, flow["client_hi"], flow["client_lo"]),
                    int(flow["client_port"]),
                    address_of(family, flow["vip_hi"], flow["vip_lo"]),
                    int(flow["vip_port"]),
                    keys[int(entry["vip"])],
                    address_of(int(pod["family"]), pod["hi"], pod["lo"]),
                    int(flow["pod_port"]),
                    int(entry["expires"]),
                    self._source(flow, pod, bool(tables.vips[entry["vip"]]["encap"])),
                    int(flow["source_port"]),
                    FlowState(int(flow["state"])),
                )
            )
        return flows
