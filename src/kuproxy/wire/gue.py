"""Generic UDP Encapsulation, version 0, data message without extensions (draft-ietf-intarea-gue-09 section 3).

Behind the UDP header: version, C bit and header length, all zero; the IP protocol number of what follows; flags, zero.
"""

from kuproxy.wire import l4

HEADER = 4
PROTOCOL = 1  # offset of the protocol number
ALL = l4.UDP_HEADER + HEADER

# The source port carries the flow's entropy for ECMP in between (section 5.11): 14 bits of it in the dynamic range.
FIRST_SOURCE_PORT = 0xC000
SOURCE_PORT_MASK = 0x3FFF
