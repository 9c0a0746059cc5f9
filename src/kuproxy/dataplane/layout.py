"""Every array of the data plane: the dtypes, the three bundles that kernels receive, and the memory behind them.

Byte order: fields are little-endian words as the machine keeps them.  Addresses are two words, `hi` the first eight
bytes of the 16-byte form as they lie in the packet (loaded little-endian), `lo` the last eight; IPv4 is held as ::/96,
that is hi = 0 and the four address bytes in the upper half of `lo`.  Ports are in host order.

Times are ticks of 0.1 s in 32 bits, compared wrap-safe (`live`), so a table may run for years.

Index 0 of VIPs and pods is never used: a zeroed entry means "empty" everywhere.
"""

import mmap
import os
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from kuproxy.codes import N_REASONS, Node

TICKS_PER_SECOND = 10
TICK_MASK = 0xFFFFFFFF

# ---------------------------------------------------------------------------------------------------------- frame

FRAME_SIZE = 256  # packets a frame can hold
HOLD_SLOTS = 64  # fragments that may wait for their first one, and be released into one frame
BATCH = (
    FRAME_SIZE - HOLD_SLOTS
)  # packets a driver may put into a frame, so that released fragments always fit
HOLD_LONGEST = 9206  # a jumbo frame: longer fragments are not held
HOLD_HEADROOM = 64  # before a held fragment, as before every packet: see drivers.contract
HOLD_BYTES = HOLD_HEADROOM + 9216
HOLD_RELEASED = 2  # HELD["used"]: its bytes go out with the present frame, and are free with the next one
HOLD_ROOM = HOLD_SLOTS * HOLD_BYTES  # bytes at the end of Frame.data that belong to the held fragments
VNET_BYTES = 10  # struct virtio_net_hdr, without num_buffers
HEADROOM = HOLD_HEADROOM  # bytes before `start` that are the packet's own: a tunnel's headers, a vnet header

PACKET = np.dtype(
    [
        ("start", "<u8"),  # offset of the Ethernet header in Frame.data
        ("vnet", "<u8"),  # offset of the virtio_net_hdr, meaningful with PacketFlag.VNET
        ("length", "<u4"),  # bytes from `start`
        ("room", "<u4"),  # bytes from `start` that may be written (for answers longer than the packet)
        ("hash", "<u4"),  # flow hash
        ("vip", "<u4"),  # index into Tables.vips, 0 = none
        ("pod", "<u4"),  # index into Tables.pods, 0 = none
        (
            "slot",
            "<u4",
        ),  # index into WorkerState.flows when tracked; FLOW["source"] with TRANSLATED and towards kp6-nat4
        ("end", "<u4"),  # end of the IP packet, from `start`; padding lies behind it
        ("l3", "<u2"),  # offsets from `start`
        ("l4", "<u2"),
        ("src_port", "<u2"),  # host order; 0 for protocols without ports
        ("dst_port", "<u2"),
        ("new_port", "<u2"),  # destination port at the pod
        ("source_port", "<u2"),  # towards kp6-nat4: the source port that the pod shall see
        ("interface", "<u2"),  # index into Tables.interfaces
        ("flags", "<u2"),  # PacketFlag
        ("family", "u1"),
        ("protocol", "u1"),  # of the innermost header after all extensions
        ("outcome", "u1"),
        ("reason", "u1"),
    ],
    align=True,
)
assert PACKET.itemsize == 64

# Words of Frame.meta
META_COUNT = 0  # packets in the frame
META_HOLD_BASE = 1  # offset in Frame.data of the hold area
META_WORDS = 8


class Frame(NamedTuple):
    """Up to FRAME_SIZE packets on their way through the graph. Owned by one worker."""

    data: np.ndarray  # uint8[n]: the driver's buffers, then HOLD_ROOM bytes of held fragments
    packets: np.ndarray  # PACKET[FRAME_SIZE]
    meta: np.ndarray  # int64[META_WORDS]
    queue: np.ndarray  # uint16[N_NODES, FRAME_SIZE]: packet indices waiting at each node
    queued: np.ndarray  # int64[N_NODES]: how many


N_NODES = max(Node) + 1  # rows by number


def make_frame(data: np.ndarray) -> Frame:
    """A frame over `data` (uint8, C-contiguous), whose last HOLD_ROOM bytes become the hold area."""
    if data.dtype != np.uint8 or data.ndim != 1 or len(data) < HOLD_ROOM:
        raise ValueError(f"frame data must be uint8[>= {HOLD_ROOM}], not {data.dtype}{data.shape}")
    meta = np.zeros(META_WORDS, np.int64)
    meta[META_HOLD_BASE] = len(data) - HOLD_ROOM
    return Frame(
        data,
        np.zeros(FRAME_SIZE, PACKET),
        meta,
        np.zeros((N_NODES, FRAME_SIZE), np.uint16),
        np.zeros(N_NODES, np.int64),
    )


# --------------------------------------------------------------------------------------------------------- tables

MATCH = np.dtype([("hi", "<u8"), ("lo", "<u8"), ("key", "<u8"), ("value", "<u4"), ("spare", "<u4")])
assert MATCH.itemsize == 32
# MATCH["key"]: kind << 56 | family << 48 | prefix length << 32 | protocol << 16 | port; 0 = empty slot.
KIND_VIP = 1  # value = VIP index
KIND_NODEPORT = 2  # address zero; value = VIP index
KIND_NODE_ADDRESS = 3  # value = 1
KIND_POD = 4  # pod address and port, whatever the protocol; value = first pod index of a chain
KIND_ADDRESS = 5  # prefix of some VIP, whatever its port; value = 1: may a fragment or an ICMP error be ours?
KIND_POD_ADDRESS = 6  # address of some pod, whatever its port; value = 1
KIND_DELETED = 255  # a tombstone: probing goes on behind it

VIP = np.dtype(
    [
        ("hi", "<u8"),  # network address
        ("lo", "<u8"),
        ("ring", "<u8"),  # offset into Tables.rings << 8 | RING_* bits | log2(entries); 0 = no pods
        ("generation", "<u4"),  # of the index: a flow of an earlier use never matches
        ("flags", "<u4"),  # VipFlag
        ("port", "<u2"),  # 0 = any
        ("target_port", "<u2"),  # default for pods without a port of their own; 0 = leave the port alone
        ("node_port", "<u2"),  # 0 = none
        ("protocol", "u1"),  # 0 = any
        ("type", "u1"),  # VipType
        ("family", "u1"),
        ("plen", "u1"),  # prefix length in the 128-bit form (IPv4 /8 is 104)
        ("encap", "u1"),  # codes.Encap
        ("dscp", "u1"),
        ("affinity", "<u4"),  # ticks, 0 = none
        ("ranges", "<u4"),  # offset into Tables.ranges of their number, the ranges behind it; 0 = everybody
        ("session_cap", "<u4"),  # flows per worker, 0 = no limit
        ("gue_port", "<u2"),  # destination port of Encap.GUE
        ("hash_mode", "u1"),  # codes.HashMode
        ("way", "u1"),  # Node that its packets go to after kp-balance, | WAY_GUARDED
        ("spare", "u1", 4),
    ]
)
# VIP["ring"]: for clients of which origin (codes.Origin) there are pods. Without a bit, one ring serves everybody. Both
# rings together lie in one block, the inside's first, so that one store publishes them.
RING_INSIDE = 1 << 6  # for pods and the node
RING_OUTSIDE = 1 << 7
RING_SPLIT = RING_INSIDE | RING_OUTSIDE
RING_FORMER = 1 << 5  # behind it, or behind both, lie as many slots with the owners before the last change; 0 = nobody
RING_LOG2 = (1 << 5) - 1
WAY_GUARDED = (
    0x80  # in VIP["way"]: it has source ranges, or pods of the other family; the rest of its row says which
)
assert VIP.itemsize == 64

POD = np.dtype(
    [
        ("hi", "<u8"),
        ("lo", "<u8"),
        ("vip", "<u4"),
        ("generation", "<u4"),
        ("next", "<u4"),  # next pod with the same KIND_POD key, 0 = end
        ("port", "<u2"),  # port that the pod listens on; 0 = as the packet says
        ("flags", "u1"),  # PodFlag
        ("family", "u1"),
    ]
)
assert POD.itemsize == 32

# Clients that a VIP lets in: address & mask == network. The first of a block holds their number in `hi`.
RANGE = np.dtype([("hi", "<u8"), ("lo", "<u8"), ("mask_hi", "<u8"), ("mask_lo", "<u8")])
assert RANGE.itemsize == 32
RANGE_ARENA = 1 << 20

# Addresses that FLOW["source"] names by their index, where they do not fit into it.
SOURCE = np.dtype([("hi", "<u8"), ("lo", "<u8")])
MAX_SOURCES = 256

MAX_VIPS = 1 << 18
MAX_PODS = 1 << 20
MATCH_ARENA = 1 << 24  # entries: holds both live tables and those that growth builds beside them
RING_ARENA = 1 << 30  # entries
MAX_INTERFACES = 1 << 12
MAX_WORKERS = 64
PREFIX_LENGTHS = 129

# Words of Tables.header
T_GENERATION = 0  # bumped after every published change; workers echo it when they have seen it
T_MATCH = 1  # offset of the live match table << 8 | log2(entries); all kinds but KIND_VIP
T_DECREMENT_TTL = 3  # 1: we are the router; 0: the kernel's routing behind us lowers the TTL
T_ANY_NODE_ADDRESS = 4  # 1: every address counts as a node address (captures, where nobody knows the node's)
T_N_NODEPORTS = 5
T_REJECT_RATE = 6  # ICMP answers per second and worker
T_VIP_MATCH = 7  # the same for KIND_VIP alone: what every packet asks stays small and dense
T_TUNNEL_SOURCE = 50  # 3 words: IPv4 as in POD["lo"], then IPv6 hi and lo; 0 = none
T_PREFIXES = 8  # 6 words: for IPv4 then IPv6, bit n of word n // 64 set when a VIP of prefix length n exists
T_FLOW_TIMEOUT = 16  # 8 words, ticks: one for each FlowState
T_MASQUERADE4 = 24  # our IPv4 address towards pods, as in FLOW["source"]; 0 = none
T_MASQUERADE6 = 25  # the same for IPv6
# Blocks of Tables.ranges like VIP["ranges"], 0 = none: who is a pod, who is the node.
T_POD_RANGES4 = 26
T_POD_RANGES6 = 27
T_NODE_RANGES4 = 28
T_NODE_RANGES6 = 29
T_NAT46_HI = 40  # the /96 prefix (RFC 6052) that IPv4 clients have towards IPv6 pods: first word
T_NAT46_LO = 41  # and second word, whose upper half is the place of the IPv4 address
T_NAT64_BASE = 42  # first address of the pool that IPv6 clients have towards IPv4 pods, as a number
T_NAT64_COUNT = 43  # addresses of the pool, 0 = none
T_NAT64_PORTS = 44  # lowest port << 16 | number of ports
T_TRANSLATION_MTU = 45  # longest packet that a translation may make, 0 = the routing behind us knows
T_OWN4 = 46  # our address as the source of ICMP errors (second word); 0 = what the packet was sent to
T_OWN6_HI = 47
T_OWN6_LO = 48
T_WORKERS = 60  # workers among which steering spreads the packets, 0 and 1 = a single one
T_COMMAND = 64  # one word a worker, see COMMAND_*
T_WORDS = T_COMMAND + MAX_WORKERS

COMMAND_RUN = 0
COMMAND_STOP = 1
# From here on the number of a call: leave the compiled loop once, and look at the control socket. The worker goes on by
# itself, whether or not control lives to see the answer.
COMMAND_CALL = 16

# Bits of Tables.classes: which kinds of VIP keys exist for a family and prefix length
CLASS_PORT = 1  # protocol and port
CLASS_PROTOCOL = 2  # protocol, any port
CLASS_ANY = 4  # any protocol


class Tables(NamedTuple):
    """What to do with packets. Written by control alone, read by every worker, without a lock."""

    header: np.ndarray  # uint64[T_WORDS]
    match: np.ndarray  # MATCH[MATCH_ARENA]
    classes: np.ndarray  # uint8[2 * PREFIX_LENGTHS]: IPv4 then IPv6
    vips: np.ndarray  # VIP[MAX_VIPS]
    pods: np.ndarray  # POD[MAX_PODS]
    rings: np.ndarray  # uint32[RING_ARENA]: pod indices
    interfaces: np.ndarray  # uint8[MAX_INTERFACES]: InterfaceFlag
    ranges: np.ndarray  # RANGE[RANGE_ARENA]
    sources: np.ndarray  # SOURCE[MAX_SOURCES]


TABLES_SPEC: tuple[tuple[str, Any, tuple[int, ...]], ...] = (
    ("header", "<u8", (T_WORDS,)),
    ("match", MATCH, (MATCH_ARENA,)),
    ("classes", "u1", (2 * PREFIX_LENGTHS,)),
    ("vips", VIP, (MAX_VIPS,)),
    ("pods", POD, (MAX_PODS,)),
    ("rings", "<u4", (RING_ARENA,)),
    ("interfaces", "u1", (MAX_INTERFACES,)),
    ("ranges", RANGE, (RANGE_ARENA,)),
    ("sources", SOURCE, (MAX_SOURCES,)),
)

# ---------------------------------------------------------------------------------------------------------- state

WAYS = 4

# One bucket is four entries: 64 bytes, one cache line, as in VPP.
ENTRY = np.dtype([("hash", "<u4"), ("expires", "<u4"), ("vip", "<u4"), ("pod", "<u4")])
assert ENTRY.itemsize * WAYS == 64

# The whole of a flow, at the same index as its entry: read to be sure, and to restore replies. One cache line.
FLOW = np.dtype(
    [
        ("client_hi", "<u8"),  # source and destination as the client wrote them
        ("client_lo", "<u8"),
        ("vip_hi", "<u8"),
        ("vip_lo", "<u8"),
        ("client_port", "<u2"),
        ("vip_port", "<u2"),
        ("pod_port", "<u2"),
        ("protocol", "u1"),
        ("family", "u1"),
        ("generation", "<u4"),  # of the VIP index when the flow began
        ("reverse", "<u4"),  # index of the reverse entry
        ("reverse_hash", "<u4"),
        ("created", "<u4"),
        # source of packets to the pod: 0 = the client's (its form in the other family, if the pod is of it);
        # IPv4 address; index of an IPv6 one
        ("source", "<u4"),
        ("source_port", "<u2"),  # source port of packets to the pod
        ("state", "u1"),  # codes.FlowState
        ("flags", "u1"),  # codes.FlowFlag
    ]
)
assert FLOW.itemsize == 64

# Eight to a cache line; the hash is that of the reply as it leaves the pod.
REVERSE = np.dtype([("hash", "<u4"), ("slot", "<u4")])  # slot + 1; 0 = empty
REVERSE_WAYS = 8

# Which pod a client of a VIP with affinity had last. All workers write this table, so an entry is eight plain words
# that are read and written one at a time: one cache line, of which the first word guards the rest (affinity.py).
AFFINITY_WORDS = 8
AFFINITY_WAYS = 4
AFFINITY_SLOTS = 1 << 18  # clients: 16 MiB when all are used

FRAGMENT = np.dtype(
    [
        ("src_hi", "<u8"),
        ("src_lo", "<u8"),
        ("dst_hi", "<u8"),
        ("dst_lo", "<u8"),
        ("identification", "<u4"),
        ("expires", "<u4"),
        ("src_port", "<u2"),
        ("dst_port", "<u2"),
        ("protocol", "u1"),  # IPv4's protocol field, part of the key; 0 in IPv6
        ("l4_protocol", "u1"),  # of the innermost header of the first fragment
        ("family", "u1"),
        ("used", "u1"),
        ("spare", "u1", 8),
    ]
)
assert FRAGMENT.itemsize == 56
FRAGMENT_SLOTS = 1024

# A held packet's record keeps what the frame's record held; its bytes lie in the frame's hold area.
HELD = np.dtype(
    [
        ("src_hi", "<u8"),
        ("src_lo", "<u8"),
        ("dst_hi", "<u8"),
        ("dst_lo", "<u8"),
        ("identification", "<u4"),
        ("expires", "<u4"),
        ("sequence", "<u8"),  # order of arrival
        ("length", "<u4"),
        ("end", "<u4"),
        ("interface", "<u2"),
        ("l3", "<u2"),
        ("l4", "<u2"),
        ("flags", "<u2"),
        ("protocol", "u1"),
        ("family", "u1"),
        ("used", "u1"),
        ("spare", "u1", 5),
    ]
)
assert HELD.itemsize == 72

# Words of WorkerState.header
W_ACK = 0  # the last Tables generation seen at a quiescent point
W_NOW = 1  # the last `now`
W_LOG2_BUCKETS = 2
W_SWEEP = 3  # next bucket to look at for expired flows
W_REJECT_TOKENS = 4
W_REJECT_TIME = 5
W_RECEIVED = 6  # packets put in by drivers
W_OUTCOMES = (
    8  # five words, indexed by Outcome: every received packet lands in one (HELD counts those waiting)
)
W_HELD_NOW = 16  # fragments waiting right now
W_VECTORS = 17
W_POLLS = 18
W_FLOWS = 19  # flows in the table, expired ones that were not swept yet included
W_SWEEPS = 20  # complete sweeps of the flow table
W_TRANSMITTED = 21  # packets that the driver handed on (TRANSMIT and PASS)
W_TRANSMIT_FAILED = 22
W_RECEIVE_DROPPED = 23  # lost before us, as the driver's socket tells
W_HELD_SEQUENCE = 24  # numbers held fragments in order of arrival
W_FLOW_HASH = 25  # FLOW_HASH_*: by which hash this worker's flows are found
W_FLOW_KEY = 26  # 2 words: the key of a keyed one, its bytes as a little-endian machine loads them
W_TUNNEL_IDENTIFICATION = 56  # of the last IPv4 tunnel header that may be fragmented
W_TRACE_LEFT = 57  # packets still to be traced
W_TRACE_PACKETS = 58  # packets traced so far; also the last one's number
W_TRACE_NEXT = 59  # trace records ever written
W_TRACE_RECEIVED = 60  # packets that the driver put into the present frame
W_STATES = 32  # 8 words: flows in the table by FlowState
W_IDENTIFICATION = 42  # of the last packet that kp6-nat4 or kp-nat46-in2out made
W_PID = 44  # process id of the worker
W_STARTS = 45  # processes that have worked with this memory, one after the other
W_KERNELS = 46  # digest of the kernels that the process runs
W_RING = 48  # 8 words of the driver's own: its place in the receive ring, for whoever takes over
W_NUMBER = 43  # which worker this is, from 0
W_IDLE_NS = 62  # nanoseconds that the loop has waited for packets
W_VISITS = 64  # N_NODES words: packets that each node of the graph was given
W_WORDS = 96
assert W_VISITS + N_NODES <= W_WORDS

# Values of W_FLOW_HASH (docs/adr/033). Which key it is makes no difference to kernels.
FLOW_HASH_VPP = 0  # CRC32C, as VPP and every node that is not told otherwise
FLOW_HASH_RANDOM = 1  # SipHash-1-3 under a key that nobody else knows
FLOW_HASH_GIVEN = 2  # the same under a key that was configured

# What a node left of a traced packet. Headers are read from the packet, the pod is copied: it may be gone when somebody
# looks.
TRACE = np.dtype(
    [
        ("source_hi", "<u8"),
        ("source_lo", "<u8"),
        ("destination_hi", "<u8"),
        ("destination_lo", "<u8"),
        ("pod_hi", "<u8"),
        ("pod_lo", "<u8"),
        ("packet", "<u4"),  # numbers from 1
        ("now", "<u4"),
        ("hash", "<u4"),
        ("slot", "<u4"),  # of the flow
        ("bytes", "<u4"),  # of the frame
        ("length", "<u4"),  # of the IP packet
        ("vip", "<u4"),
        ("vip_generation", "<u4"),
        ("pod", "<u4"),
        ("ring_slots", "<u4"),  # of the new-flow table; 0 = it was not asked
        ("ring_slot", "<u4"),
        ("source_port", "<u2"),
        ("destination_port", "<u2"),
        ("pod_port", "<u2"),
        ("interface", "<u2"),
        ("flags", "<u2"),
        ("node", "u1"),
        ("outcome", "u1"),
        ("reason", "u1"),
        ("family", "u1"),  # 0 = the packet was not understood; then no header field counts
        ("protocol", "u1"),
        ("pod_family", "u1"),
        ("spare", "u1", 4),
    ]
)
assert TRACE.itemsize == 112
TRACE_SLOTS = 1 << 13
MAX_TRACED = 1000  # packets at once: eight nodes each fit


class WorkerState(NamedTuple):
    """What happened: flows, counters, fragments. Written by exactly one worker, but for `affinity`, which all share."""

    header: np.ndarray  # int64[W_WORDS]
    counters: np.ndarray  # uint64[N_NODES, N_REASONS]
    vip_counters: np.ndarray  # uint64[MAX_VIPS, 8], columns VipCounter
    pod_refs: np.ndarray  # int32[MAX_PODS]: flows in the table that refer to the pod
    pod_counters: np.ndarray  # uint64[MAX_PODS, 8], columns PodCounter: one cache line a pod
    trace: np.ndarray  # TRACE[TRACE_SLOTS], a ring
    trace_numbers: np.ndarray  # uint32[FRAME_SIZE]: numbers of the present frame's traced packets
    fragments: np.ndarray  # FRAGMENT[FRAGMENT_SLOTS]
    held: np.ndarray  # HELD[HOLD_SLOTS]
    vip_flows: np.ndarray  # int32[MAX_VIPS]: flows in the table, as W_FLOWS, of each VIP
    affinity: np.ndarray  # uint64[AFFINITY_SLOTS * AFFINITY_WORDS], in the region that all workers share
    entries: np.ndarray  # ENTRY[buckets * WAYS]
    flows: np.ndarray  # FLOW[buckets * WAYS]
    reverse: np.ndarray  # REVERSE[buckets * REVERSE_WAYS]


STATE_SPEC: tuple[tuple[str, Any, tuple[int, ...]], ...] = (
    ("header", "<i8", (W_WORDS,)),
    ("counters", "<u8", (N_NODES, N_REASONS)),
    ("vip_counters", "<u8", (MAX_VIPS, 8)),
    ("pod_refs", "<i4", (MAX_PODS,)),
    ("pod_counters", "<u8", (MAX_PODS, 8)),
    ("trace", TRACE, (TRACE_SLOTS,)),
    ("trace_numbers", "<u4", (FRAME_SIZE,)),
    ("fragments", FRAGMENT, (FRAGMENT_SLOTS,)),
    ("held", HELD, (HOLD_SLOTS,)),
    ("vip_flows", "<i4", (MAX_VIPS,)),
)

# What all workers write: docs/adr/017.
SHARED_SPEC: tuple[tuple[str, Any, tuple[int, ...]], ...] = (
    ("affinity", "<u8", (AFFINITY_SLOTS * AFFINITY_WORDS,)),
)


class Baselines(NamedTuple):
    """What had been counted for an index before its present owner came. Written and read by control alone."""

    vips: np.ndarray  # uint64[MAX_VIPS, 8], as WorkerState.vip_counters
    pods: np.ndarray  # uint64[MAX_PODS, 8], as WorkerState.pod_counters


BASELINES_SPEC: tuple[tuple[str, Any, tuple[int, ...]], ...] = (
    ("vips", "<u8", (MAX_VIPS, 8)),
    ("pods", "<u8", (MAX_PODS, 8)),
)


def flow_spec(log2_buckets: int) -> tuple[tuple[str, Any, tuple[int, ...]], ...]:
    """The flow table's arrays: per flow 16 bytes of entry, 64 of record and 16 of reverse index, 96 in all."""
    buckets = 1 << log2_buckets
    return (
        ("entries", ENTRY, (buckets * WAYS,)),
        ("flows", FLOW, (buckets * WAYS,)),
        ("reverse", REVERSE, (buckets * REVERSE_WAYS,)),
    )


# --------------------------------------------------------------------------------------------------------- memory

_PAGE = 4096
_MADV_HUGEPAGE = 14


def spec_bytes(spec: Iterable[tuple[str, Any, tuple[int, ...]]]) -> int:
    """Bytes of a region that holds the arrays of `spec`, each on its own pages."""
    return sum(
        -(-int(np.prod(shape)) * np.dtype(dtype).itemsize // _PAGE) * _PAGE for _, dtype, shape in spec
    )


class Region:
    """Named arrays in one anonymous shared-memory file. Pages appear when first touched, so capacity costs nothing.

    The file has no name: it lives as long as a process holds the descriptor or the mapping, whatever happens. The
    descriptor is the region's own and goes with it; the mapping stays for whoever holds an array.
    """

    fd = -1

    def __init__(
        self, spec: Iterable[tuple[str, Any, tuple[int, ...]]], fd: int | None = None, *, name: str = "ku"
    ):
        self.spec = tuple(spec)
        size = spec_bytes(self.spec)
        if fd is None:
            fd = os.memfd_create(f"kuproxy-{name}", os.MFD_CLOEXEC)
            os.ftruncate(fd, size)
        elif os.fstat(fd).st_size != size:
            raise ValueError(
                f"region of {os.fstat(fd).st_size} bytes does not have this layout ({size} bytes)"
            )
        self.fd = fd
        self._map = mmap.mmap(fd, size)
        if hasattr(self._map, "madvise") and size >= 1 << 21:
            try:
                self._map.madvise(_MADV_HUGEPAGE)
            except OSError:
                pass  # kernels without huge pages for shared memory: small pages serve
        self.arrays: dict[str, np.ndarray] = {}
        offset = 0
        for field, dtype, shape in self.spec:
            count = int(np.prod(shape))
            self.arrays[field] = np.frombuffer(self._map, dtype, count, offset).reshape(shape)
            offset += -(-count * np.dtype(dtype).itemsize // _PAGE) * _PAGE

    def close(self) -> None:
        """Give up the descriptor; the mapping goes when the last array does."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
        self.arrays = {}

    def __del__(self) -> None:
        self.close()


def as_tables(region: Region) -> Tables:
    """The Tables bundle over a region of TABLES_SPEC."""
    return Tables(**region.arrays)


def as_state(fixed: Region, flows: Region, shared: Region | None = None) -> WorkerState:
    """The WorkerState bundle over a region of STATE_SPEC, one of flow_spec and one of SHARED_SPEC.

    Without the last, the worker has tables of its own where others share theirs: right for a worker that is alone.
    """
    common = shared or Region(SHARED_SPEC, name="shared")
    return WorkerState(**fixed.arrays, **flows.arrays, **common.arrays)
