"""Which worker gets a packet: what the steering programs decide, and workers must know when they choose a source.

Both directions of a flow come to one worker, because the worker follows from the client's address and port alone:
the source on the way in, the destination on the way back. A worker that gives a flow another source takes one whose
replies come back to itself. Only the last four bytes of an address count, so that an IPv4 client and its form in the
NAT46 prefix (RFC 6052, /96) have one worker.

ICMP belongs to worker 0. An echo has no port, and what takes its place, an identifier or nothing, would not survive
being masqueraded or crossing the families. Other protocols without ports count as port 0.

`steering.program` says the same in BPF and in Python; tests hold them equal.
"""

import numpy as np

from kuproxy.codes import Protocol
from kuproxy.dataplane._jit import helper
from kuproxy.dataplane.layout import T_WORKERS, W_NUMBER
from kuproxy.dataplane.memory import swap16
from kuproxy.wire import l4

_ICMP = int(Protocol.ICMP)
_ICMP6 = int(Protocol.ICMP6)
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)
# The halves of 2^64 divided by the golden ratio (Fibonacci hashing). Products are put together from halves: whole ones
# would leave 64 bits, which the compiler takes as meant and NumPy as a mistake.
_MIX_HIGH = np.uint64(0x9E3779B9)
_MIX_LOW = np.uint64(0x7F4A7C15)


@helper
def worker_of(lo, port, protocol, workers):
    """Number of the worker for a client: `lo` is its address's second word (uint64), the rest int64."""
    if protocol == _ICMP or protocol == _ICMP6:
        return np.int64(0)
    address = lo >> _HALF
    port_be = np.uint64(swap16(port))
    mixed = ((address * _MIX_LOW) >> _HALF) + ((address * _MIX_HIGH) & _LOW) + ((port_be * _MIX_LOW) & _LOW)
    return np.int64(((mixed & _LOW) * np.uint64(workers)) >> _HALF)


@helper
def is_alone(tables):
    """Is there but one worker?"""
    return tables.header[T_WORKERS] <= np.uint64(1)


@helper
def comes_back(tables, state, lo, port, protocol):
    """Do replies to this address (second word) and port come to this worker?"""
    if tables.header[T_WORKERS] <= np.uint64(1):
        return True
    counted = port if l4.has_ports(protocol) else np.int64(0)
    workers = np.int64(tables.header[T_WORKERS])
    return worker_of(lo, counted, protocol, workers) == state.header[W_NUMBER]


@helper
def next_identification(tables, state, word):
    """The IPv4 identification after that in the state's header word `word`, which becomes it.

    Workers number packets of the same addresses, so each has a part of the numbers (RFC 6864 section 4.3).
    """
    workers = np.int64(tables.header[T_WORKERS])
    size = np.int64(65536)
    if workers > 1:
        size = size // workers
    first = np.int64(state.header[W_NUMBER]) * size
    number = np.int64(state.header[word]) + 1
    if number < first:  # never in our part yet
        number = first + 1
    elif number >= first + size:
        number = first
    state.header[word] = number
    return number
