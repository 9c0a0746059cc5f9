"""What can be wrong with a capture file, as kernels number it and as users read it.

Everything before the problem is whole and stays readable.
"""

from enum import IntEnum


class Stop(IntEnum):
    """Why an indexing kernel returned."""

    ARRAY_FULL = 0  # call again with room
    END = 1  # the file ends where a packet ends
    SECTION = 2  # pcapng: a section header block, for the caller to read
    INTERFACE = 3  # pcapng: an interface description block, for the caller to read
    # --- the rest are problems ---------------------------------------------------------------------------
    CUT_HEADER = 16
    CUT_PACKET = 17
    CUT_BLOCK = 18
    TOO_LONG = 19
    BLOCK_LENGTH = 20
    BLOCK_TRAILER = 21
    BLOCK_BODY = 22
    NO_INTERFACE = 23
    LINK_TYPE = 24


PROBLEM_TEXT = {
    Stop.CUT_HEADER: "the file ends inside a packet's header",
    Stop.CUT_PACKET: "the file ends inside a packet",
    Stop.CUT_BLOCK: "the file ends inside a block",
    Stop.TOO_LONG: "a packet claims more than 262,144 bytes",
    Stop.BLOCK_LENGTH: "a block's length is below 12 or not a multiple of 4",
    Stop.BLOCK_TRAILER: "a block's two length fields differ",
    Stop.BLOCK_BODY: "a packet is longer than its block, or the block shorter than its fields",
    Stop.NO_INTERFACE: "a packet refers to an interface that was not described",
    Stop.LINK_TYPE: "a packet's link type is not Ethernet (1)",
}

MAX_PACKET = 262_144  # libpcap's MAXIMUM_SNAPLEN: no program writes more, so a larger length is damage
ETHERNET = 1  # LINKTYPE_ETHERNET
