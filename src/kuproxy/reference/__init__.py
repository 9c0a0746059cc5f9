"""The same forwarding as the compiled graph: slow, plain Python, obviously right.

This package is the executable form of docs/forwarding.md.  It imports the standard library, `codes` and `model`
alone, so that no mistake in a kernel, in a layout or in NumPy's arithmetic can be in both.  Tests run it beside the
compiled graph and compare every packet, counter and flow; `ku explain` and new features may be tried out here first.

What is left out on purpose: the capacity of the fragment table, and everything that is there for speed.
"""

from kuproxy.reference.flows import FlowTable
from kuproxy.reference.forwarding import Reference
from kuproxy.reference.hashes import crc32c, flow_hash, xxh64_word
from kuproxy.reference.maglev import maglev_ring
from kuproxy.reference.packet import Packet, Refused, parse
from kuproxy.reference.passage import LiveFlow, RefPacket, Result
from kuproxy.reference.workers import Workers

__all__ = [
    "FlowTable",
    "LiveFlow",
    "Packet",
    "RefPacket",
    "Reference",
    "Refused",
    "Result",
    "Workers",
    "crc32c",
    "flow_hash",
    "maglev_ring",
    "parse",
    "xxh64_word",
]
