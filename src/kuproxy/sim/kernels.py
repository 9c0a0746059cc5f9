"""The simulator's kernels, all in one file.

Numba knows a cached function by its own file.  The data plane's cache is keyed by a digest of the data plane's sources
besides, and those must not include the simulator's, or every change here would compile the data plane anew.  In one
file, a helper cannot change unnoticed.
"""

import math

import numpy as np

from kuproxy.codes import PacketFlag
from kuproxy.dataplane._jit import kernel
from kuproxy.dataplane.hash import pod_seed
from kuproxy.dataplane.layout import META_COUNT, WAYS

_LOW = np.uint64(0xFFFFFFFF)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)  # the finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_UNIT = 2.0**-53
_NODEPORT = int(PacketFlag.NODEPORT)
_LATER = int(PacketFlag.LATER_FRAGMENT)
_KNOWN = int(PacketFlag.NEW_FLOW | PacketFlag.UNTRACKED)

# Of a packet of a flow, as the model and the real table report it.
NEXT = 0
FIRST = 1  # it began an entry
UNTRACKED = 2  # it found no room for one
_SYN = 4  # of the first reading: a TCP segment that begins a connection


@kernel
def mix(word):
    """uint64 to uint64: every bit depends on every bit; nothing collides."""
    word = (word ^ (word >> np.uint64(30))) * _MIX_1
    word = (word ^ (word >> np.uint64(27))) * _MIX_2
    return word ^ (word >> np.uint64(31))


# ------------------------------------------------------------------------------------------------ choosing


@kernel
def fill_prime(hi, lo, weights, walk, ring):
    """Fill `ring` (int64[M], M a prime, all -1) with positions of pods; `walk` (int64[2, p]) is scratch.

    offset = h1 mod M, skip = h2 mod (M - 1) + 1, with the two hashes of the data plane's own table.  Weights as there:
    the heaviest pod takes a slot in every turn, another one when floor(turn * weight / heaviest) grows.
    """
    slots = len(ring)
    pods = len(weights)
    heaviest = np.int64(0)
    for p in range(pods):
        seed = pod_seed(hi[p], lo[p])
        walk[0, p] = np.int64(seed >> np.uint64(32)) % slots
        walk[1, p] = np.int64(seed & _LOW) % (slots - 1) + 1
        heaviest = max(heaviest, weights[p])
    filled = 0
    turn = np.int64(0)
    while True:
        turn += 1
        for p in range(pods):
            if turn * weights[p] // heaviest == (turn - 1) * weights[p] // heaviest:
                continue
            slot = walk[0, p]
            while ring[slot] >= 0:
                slot = (slot + walk[1, p]) % slots
            ring[slot] = p
            walk[0, p] = (slot + walk[1, p]) % slots
            filled += 1
            if filled == slots:
                return


@kernel
def highest_weights(keys, words, weights, chosen):
    """chosen[i] (int64) is the pod with the highest score -weight / ln(u) for keys[i] (uint64)."""
    for i in range(len(keys)):
        best = np.int64(-1)
        least = math.inf
        for p in range(len(words)):
            unit = (np.float64(mix(keys[i] ^ words[p]) >> np.uint64(11)) + 0.5) * _UNIT
            cost = -math.log(unit) / weights[p]
            if cost < least:
                least = cost
                best = np.int64(p)
        chosen[i] = best


# ------------------------------------------------------------------------------------------------ the paper


@kernel
def claim_views(words, views, owners):
    """View by view, each backend (uint64[n]) claims one entry; what is left goes to the next that was claimed."""
    size = np.uint64(len(owners))
    for view in range(views):
        for backend in range(len(words)):
            entry = np.int64(mix(words[backend] ^ mix(np.uint64(view + 1))) % size)
            if owners[entry] < 0:
                owners[entry] = backend
    following = np.int64(-1)
    for _ in range(2):  # the second time around for those behind the last claimed entry
        for entry in range(len(owners) - 1, -1, -1):
            if owners[entry] >= 0:
                following = owners[entry]
            elif following >= 0:
                owners[entry] = following


@kernel
def highest_scores(words, owners):
    """owners[entry] (int64) is the backend (uint64[n]) whose hash together with the entry's is the highest."""
    for entry in range(len(owners)):
        key = mix(np.uint64(entry + 1))
        best = np.uint64(0)
        for backend in range(len(words)):
            score = mix(key ^ words[backend])
            if score >= best:
                best = score
                owners[entry] = backend


# ------------------------------------------------------------------------------------------------ watching the graph


@kernel
def _word(data, at):
    word = np.uint64(0)
    for byte in range(8):
        word = (word << np.uint64(8)) | np.uint64(data[at + byte])
    return word


@kernel
def read_headers(frame, keys, destinations, kinds):
    """What packets say before the graph changes them: a key for the flow, the destination, whether it is a SYN.

    keys: uint64[n], equal for packets of one 5-tuple, 0 for what is no TCP, UDP or SCTP over plain IP; destinations:
    uint8[n, 16], IPv4 as ::a.b.c.d; kinds: uint8[n].  One VLAN tag is skipped.
    """
    data = frame.data
    for i in range(np.int64(frame.meta[META_COUNT])):
        keys[i] = 0
        kinds[i] = 0
        start = np.int64(frame.packets[i]["start"])
        length = np.int64(frame.packets[i]["length"])
        at = start + 12
        if length > 18 and data[at] == 0x81 and data[at + 1] == 0:
            at += 4
        l3 = at + 2
        if length < l3 - start + 28:
            continue
        for byte in range(12):
            destinations[i, byte] = 0
        key = np.uint64(0)
        if data[at] == 0x08 and data[at + 1] == 0 and data[l3] >> 4 == 4:
            if (data[l3 + 6] & 0x1F) != 0 or data[l3 + 7] != 0:  # a later fragment has no ports
                continue
            l4 = l3 + 4 * np.int64(data[l3] & 15)
            protocol = np.int64(data[l3 + 9])
            key = mix(_word(data, l3 + 12))
            for byte in range(4):
                destinations[i, 12 + byte] = data[l3 + 16 + byte]
        elif data[at] == 0x86 and data[at + 1] == 0xDD and length >= l3 - start + 48:
            l4 = l3 + 40
            protocol = np.int64(data[l3 + 6])
            for part in range(4):
                key = mix(key ^ _word(data, l3 + 8 + 8 * part))
            for byte in range(16):
                destinations[i, byte] = data[l3 + 24 + byte]
        else:
            continue
        if (protocol != 6 and protocol != 17 and protocol != 132) or l4 + 8 > start + length:
            continue
        ports = _word(data, l4) >> np.uint64(32)
        key = mix(key ^ (ports << np.uint64(8)) ^ np.uint64(protocol))
        keys[i] = key if key != 0 else np.uint64(1)
        if protocol == 6 and l4 + 14 <= start + length and data[l4 + 13] & 0x12 == 2:
            kinds[i] = _SYN


@kernel
def _is_within(vip, destination):
    for bit in range(0, np.int64(vip["plen"]), 8):
        byte = bit >> 3
        word = vip["hi"] if byte < 8 else vip["lo"]
        wanted = np.int64(word >> np.uint64(8 * (byte & 7))) & 0xFF
        left = np.int64(vip["plen"]) - bit
        mask = 0xFF if left >= 8 else (0xFF00 >> left) & 0xFF
        if (np.int64(destination[byte]) ^ wanted) & mask != 0:
            return False
    return True


@kernel
def record(frame, tables, received, keys, destinations, kinds, times_ns, out, position):
    """Append to `out` (see trace.PACKET_DTYPE) what the graph did with packets towards a VIP; returns its new end.

    Replies, and packets without a key, are left out.
    """
    for i in range(received):
        packet = frame.packets[i]
        index = np.int64(packet["vip"])
        flags = np.int64(packet["flags"])
        if index == 0 or keys[i] == 0 or flags & _LATER:
            continue
        if flags & _NODEPORT == 0 and not _is_within(tables.vips[index], destinations[i]):
            continue
        row = out[position]
        row["time_ns"] = times_ns[i]
        row["key"] = keys[i]
        row["hash"] = packet["hash"]
        row["vip"] = packet["vip"]
        row["pod"] = packet["pod"] if packet["outcome"] == 1 else np.uint32(0)
        row["syn"] = kinds[i] == _SYN
        kind = NEXT
        if flags & _KNOWN == 0x4000:
            kind = FIRST
        elif flags & 64:
            kind = UNTRACKED
        row["kind"] = kind
        position += 1
    return position


# ------------------------------------------------------------------------------------------------ the model's table


@kernel
def model_table(
    ticks, flows, hashes, choices, alive, first, last, epoch, timeout, expires, owner, pods, pod_out, kinds
):
    """The packets first ... last - 1 of one epoch through a table of buckets of WAYS entries, as the data plane's.

    - ticks, flows: int64[packets], of 0.1 s, and numbers of flows;
    - hashes: uint32[flows], whose low bits name the bucket;
    - choices: int64[epochs, flows], the pod for a flow's first packet, -1 none;
    - alive: bool[epochs, pods]: a flow of a pod that is not gets another one, and keeps its entry;
    - expires, owner, pods: int64[entries], the table; owner is a flow or -1;
    - timeout in ticks; 0: nothing is remembered.

    Written: pod_out (int64[packets]) and kinds (uint8[packets]).
    """
    mask = len(expires) // WAYS - 1
    for i in range(first, last):
        flow = flows[i]
        now = ticks[i]
        base = (np.int64(hashes[flow]) & mask) * WAYS
        free = np.int64(-1)
        found = np.int64(-1)
        for slot in range(base, base + WAYS):
            held = owner[slot] >= 0 and expires[slot] > now
            if held and owner[slot] == flow:
                if alive[epoch, pods[slot]]:
                    found = slot
                else:
                    free = slot
            elif not held and free < 0:
                free = slot
        if found >= 0:
            pod_out[i] = pods[found]
            expires[found] = now + timeout
            kinds[i] = NEXT
            continue
        chosen = choices[epoch, flow]
        pod_out[i] = chosen
        kinds[i] = UNTRACKED
        if chosen >= 0 and timeout > 0 and free >= 0:
            owner[free] = flow
            pods[free] = chosen
            expires[free] = now + timeout
            kinds[i] = FIRST


@kernel
def occupied(expires, owner, now):
    """How many entries hold a flow at this tick; those of lost pods too, until they expire or give way."""
    count = 0
    for slot in range(len(expires)):
        if owner[slot] >= 0 and expires[slot] > now:
            count += 1
    return count


# ------------------------------------------------------------------------------------------------ judging


@kernel
def judge(flows, pods, syn, epochs, alive, previous, broken, orphaned):
    """Mark flows of which a packet went elsewhere than the one before, without a new connection's SYN in between.

    flows, pods, epochs: int64[packets], pods -1 where a packet went nowhere; syn: bool[packets]; alive:
    bool[epochs, pods]; previous: int64[flows], all -1.  Written, bool[flows]: `broken`, and `orphaned` for flows whose
    pod had been lost, which no choice could have saved.
    """
    for i in range(len(flows)):
        flow = flows[i]
        before = previous[flow]
        if before >= 0 and before != pods[i] and not syn[i]:
            if alive[epochs[i], before]:
                broken[flow] = True
            else:
                orphaned[flow] = True
        previous[flow] = pods[i]
