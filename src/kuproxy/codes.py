"""Every integer that two rooms share, each with the sentence that users read.

Kernels, the reference, `show` texts, metrics and documentation all take their numbers and words from here, so
that a new drop reason or node is written once.  Only the standard library may be imported.
"""

from enum import IntEnum, IntFlag


class Protocol(IntEnum):
    """IP protocol numbers (IANA) that the data plane treats by name; ANY is our wildcard (HOPOPT never
    reaches the lookup: extension headers are skipped)."""

    ANY = 0
    ICMP = 1
    TCP = 6
    UDP = 17
    ICMP6 = 58
    SCTP = 132


PROTOCOLS_WITH_PORTS = (Protocol.TCP, Protocol.UDP, Protocol.SCTP)


class Family(IntEnum):
    """IP version as the first nibble of the header says it."""

    NONE = 0
    IPV4 = 4
    IPV6 = 6


class VipType(IntEnum):
    """How a VIP reaches its pods: the family of the VIP, then of the pods (VPP's four types)."""

    IP4_NAT44 = 0
    IP4_NAT46 = 1
    IP6_NAT64 = 2
    IP6_NAT66 = 3

    @property
    def label(self) -> str:
        """VPP's spelling, `ip4-nat44`."""
        return self.name.lower().replace("_", "-")

    @property
    def vip_family(self) -> Family:
        return Family.IPV4 if self <= VipType.IP4_NAT46 else Family.IPV6

    @property
    def pod_family(self) -> Family:
        return Family.IPV4 if self in (VipType.IP4_NAT44, VipType.IP6_NAT64) else Family.IPV6


class Encap(IntEnum):
    """How packets get to the pods of a VIP. All but NAT are direct return: replies do not come back through us.

    The family of a tunnel is that of the pods, which the VIP's type tells.
    """

    NAT = 0  # destination address and port are rewritten, replies are restored
    GRE = 1  # RFC 2784
    IPIP = 2  # RFC 2003, 2473, 4213
    GUE = 3  # Generic UDP Encapsulation, version 0 (draft-ietf-intarea-gue)
    L3DSR = 4  # destination address rewritten; the DSCP tells the pod which VIP was addressed

    @property
    def is_tunnel(self) -> bool:
        return self in (Encap.GRE, Encap.IPIP, Encap.GUE)


class VipFlag(IntFlag):
    """Per-VIP bits that a kernel must see."""

    USED = 1  # cleared when the VIP is deleted: its flows are then forgotten
    REJECT = 2  # without pods, answer with TCP RST or ICMP port unreachable instead of dropping silently
    # Pods see an address of the node as the source, not the client's: clients of one origin, Origin << 8, or all.
    MASQUERADE_POD = 256
    MASQUERADE_NODE = 512
    MASQUERADE_OUTSIDE = 1024
    MASQUERADE = 1792
    RESET = 2048  # TCP flows of flushed pods are answered with a reset instead of moving to another pod


class Origin(IntFlag):
    """Where a packet comes from, as far as Kubernetes' rules tell clients apart; a set of them, or one."""

    POD = 1  # a pod, as `detectLocalMode` recognises it; asked before the node
    NODE = 2  # the node itself: the source is one of its addresses
    OUTSIDE = 4  # anybody else
    ANYWHERE = 7


class PodFlag(IntFlag):
    """Per-pod bits."""

    USED = 1  # gets new flows; cleared when the pod is removed from its VIP or weighs 0 (drain)
    FLUSHED = 2  # not even its old flows are its own any more
    # Of VIPs with two rings: new flows of some clients only.
    NOT_INSIDE = 4  # none of pods and the node
    NOT_OUTSIDE = 8  # none of clients from outside


class HashMode(IntEnum):
    """What of a first packet chooses the slot of the new-flow table."""

    FLOW = 0  # addresses and ports
    SOURCE = 1  # the client's address alone


class FlowState(IntEnum):
    """What is known about a flow's life; each has a timeout of its own."""

    OTHER = 0  # protocols that are not looked into
    TCP_HALF_OPEN = 1  # not yet confirmed by both sides
    TCP_ESTABLISHED = 2
    TCP_CLOSING = 3  # reset, or finished by both sides
    UDP = 4
    SCTP = 5
    ICMP = 6

    @property
    def label(self) -> str:
        """As the command language writes it, `tcp-half-open`."""
        return self.name.lower().replace("_", "-")


class FlowFlag(IntFlag):
    """What is known of a TCP flow: what its two sides have said so far, and whether its pod is sure."""

    CLIENT = 1  # the client acknowledged something, without SYN
    POD = 2  # the pod answered, other than with a reset
    CLIENT_FIN = 4
    POD_FIN = 8
    TENTATIVE = 16  # began in the middle, at a pod that has said nothing yet and may not know it (docs/adr/036)


class InterfaceFlag(IntFlag):
    """Per-interface bits: whose traffic is looked up in the return direction."""

    NAT4_IN = 1  # `set interface nat4 in`
    NAT6_IN = 2  # `set interface nat6 in`


class Outcome(IntEnum):
    """What became of a packet. Every packet has exactly one; HELD packets get another one later."""

    NONE = 0
    TRANSMIT = 1  # rewritten, leaves towards its new destination
    PASS = 2  # not ours: goes on untouched
    DROP = 3
    HELD = 4  # a later fragment that waits for its first one


class Node(IntEnum):
    """Nodes of the graph. `graph.NODES` tells the order in which a vector visits them."""

    INPUT = 0
    FRAGMENT = 1
    LOOKUP = 2
    NODEPORT4 = 3
    NODEPORT6 = 4
    BALANCE = 5
    NAT44 = 6
    NAT66 = 7
    NAT4_IN2OUT = 8
    NAT6_IN2OUT = 9
    REJECT = 10
    ICMP_ERROR = 11
    NAT46 = 12
    NAT64 = 13
    NAT46_IN2OUT = 14
    NAT64_IN2OUT = 15
    ICMP = 16
    GRE = 21
    IPIP = 22
    GUE = 23
    L3DSR = 24
    MASQUERADE = 18  # visited between BALANCE and NAT44

    @property
    def label(self) -> str:
        """The name as users see it; VPP users know most of them."""
        return NODE_NAMES[self]


NODE_NAMES = {
    Node.INPUT: "kp-input",
    Node.FRAGMENT: "kp-fragment",
    Node.LOOKUP: "kp-lookup",
    Node.NODEPORT4: "kp4-nodeport",
    Node.NODEPORT6: "kp6-nodeport",
    Node.BALANCE: "kp-balance",
    Node.NAT44: "kp4-nat4",
    Node.NAT66: "kp6-nat6",
    Node.NAT4_IN2OUT: "kp-nat4-in2out",
    Node.NAT6_IN2OUT: "kp-nat6-in2out",
    Node.REJECT: "kp-reject",
    Node.GRE: "kp-gre",
    Node.IPIP: "kp-ipip",
    Node.GUE: "kp-gue",
    Node.L3DSR: "kp-l3dsr",
    Node.MASQUERADE: "kp-masquerade",
    Node.ICMP_ERROR: "kp-icmp-error",
    Node.NAT46: "kp4-nat6",
    Node.NAT64: "kp6-nat4",
    Node.NAT46_IN2OUT: "kp-nat46-in2out",
    Node.NAT64_IN2OUT: "kp-nat64-in2out",
    Node.ICMP: "kp-icmp",
}


class Reason(IntEnum):
    """Why a packet ended as it did, or what a node wants counted about it.

    Counted per node in ``WorkerState.counters[node, reason]``.  The sentence feeds `show node counters`,
    the metrics' help text and the documentation.
    """

    NONE = 0
    # --- ends in DROP: the packet is malformed -----------------------------------------------------------
    TRUNCATED_ETHERNET = 1
    TRUNCATED_IPV4 = 2
    TRUNCATED_IPV6 = 3
    BAD_VERSION = 4
    BAD_HEADER_LENGTH = 5
    BAD_TOTAL_LENGTH = 6
    BAD_IPV4_CHECKSUM = 7
    EXTENSION_HEADER_LIMIT = 8
    TRUNCATED_EXTENSION = 9
    TRUNCATED_L4 = 10
    BAD_L4_LENGTH = 11
    # --- ends in DROP: a decision ------------------------------------------------------------------------
    TTL_EXPIRED = 16
    NO_POD = 17
    REJECT_RATE_LIMITED = 19
    REJECT_SUPPRESSED = 20
    FLOW_CLASH = 24
    FRAGMENT_HOLD_FULL = 25
    FRAGMENT_TOO_LONG = 26
    FRAGMENT_TIMEOUT = 27
    FRAGMENT_FIRST_TOO_SHORT = 28
    SCTP_FRAGMENT = 29
    WORKER_ENDED = 30
    # --- ends in PASS ------------------------------------------------------------------------------------
    NOT_IP = 32
    NO_VIP = 33
    NO_TRANSLATION = 34
    UNSUPPORTED_PROTOCOL = 35
    # --- ends in TRANSMIT --------------------------------------------------------------------------------
    FORWARDED = 40
    IN2OUT = 41
    REJECT_SENT = 42
    # --- ends in HELD ------------------------------------------------------------------------------------
    FRAGMENT_HELD = 44
    # --- events beside the outcome -----------------------------------------------------------------------
    VIP_MATCHED = 48
    FIRST_FRAGMENT = 49
    LATER_FRAGMENT = 50
    FRAGMENT_RELEASED = 51
    EXISTING_SESSION = 52
    FIRST_PACKET = 53
    UNTRACKED = 54
    CLASH_AVOIDED = 55
    IN2OUT_UNTRACKED = 56
    # --- translation between the families, and ICMP: each says how it ends ------------------------------
    ICMP_BAD_CHECKSUM = 64
    ICMP_ERROR_TRANSLATED = 65
    TIME_EXCEEDED_SENT = 66
    ERROR_SUPPRESSED = 67
    ERROR_RATE_LIMITED = 68
    ECHO_ANSWERED = 69
    FLOW_TABLE_FULL = 70
    PORTS_EXHAUSTED = 71
    UNTRANSLATABLE_PROTOCOL = 72
    UNTRANSLATABLE_ICMP = 73
    UNTRANSLATABLE_FRAGMENT = 74
    ZERO_CHECKSUM_FRAGMENT = 75
    SOURCE_ROUTE_SENT = 76
    PARAMETER_PROBLEM_SENT = 77
    PACKET_TOO_BIG_SENT = 78
    FRAGMENTED = 79
    # --- direct return -----------------------------------------------------------------------------------
    ENCAPSULATED = 96  # TRANSMIT
    TUNNEL_NO_SOURCE = 97  # DROP
    TUNNEL_GSO = 98  # DROP
    TUNNEL_TOO_LONG = 99  # DROP
    # --- flow state, masquerade, policy: events, then ends in DROP ---------------------------------------
    HALF_OPEN_EVICTED = 80
    CHOSEN_AFRESH = 81
    MASQUERADED = 82
    PORT_TRANSLATED = 83
    AFFINITY = 84
    MASQUERADE_EXHAUSTED = 88
    NO_MASQUERADE_ADDRESS = 89
    SOURCE_RANGE = 91
    SESSION_CAP = 92
    # --- second chance: an event at kp-balance, then an end in DROP where replies are restored ------------
    TENTATIVE = 85
    SECOND_CHANCE = 93


N_REASONS = 128

REASON_TEXT = {
    Reason.NONE: "nothing",
    Reason.TRUNCATED_ETHERNET: "frame ends inside its Ethernet or VLAN header",
    Reason.TRUNCATED_IPV4: "packet ends inside its IPv4 header",
    Reason.TRUNCATED_IPV6: "packet ends inside its IPv6 header",
    Reason.BAD_VERSION: "IP version does not agree with the EtherType",
    Reason.BAD_HEADER_LENGTH: "IPv4 header length is below 20 bytes",
    Reason.BAD_TOTAL_LENGTH: "IP length field is larger than the packet or smaller than its headers",
    Reason.BAD_IPV4_CHECKSUM: "IPv4 header checksum is wrong",
    Reason.EXTENSION_HEADER_LIMIT: "more than 8 IPv6 extension headers",
    Reason.TRUNCATED_EXTENSION: "packet ends inside an IPv6 extension header",
    Reason.TRUNCATED_L4: "packet ends inside its TCP, UDP, SCTP or ICMP header",
    Reason.BAD_L4_LENGTH: "TCP data offset or UDP length is out of bounds",
    Reason.TTL_EXPIRED: "TTL or hop limit expired",
    Reason.NO_POD: "no server configured",
    Reason.REJECT_RATE_LIMITED: "no server configured, answer suppressed by the rate limit",
    Reason.REJECT_SUPPRESSED: "no server configured, and this kind of packet must not be answered",
    Reason.FLOW_CLASH: "client address and port already in use towards every candidate pod",
    Reason.FRAGMENT_HOLD_FULL: "fragment came before its first one and the hold is full",
    Reason.FRAGMENT_TOO_LONG: "fragment came before its first one and is longer than a hold buffer",
    Reason.FRAGMENT_TIMEOUT: "first fragment did not come in time",
    Reason.FRAGMENT_FIRST_TOO_SHORT: "first fragment does not hold the ports",
    Reason.SCTP_FRAGMENT: "fragment of an SCTP packet whose port must change: its CRC32C cannot be corrected",
    Reason.WORKER_ENDED: "the worker's process ended while it had the packet",
    Reason.NOT_IP: "not an IP packet",
    Reason.NO_VIP: "no VIP matches",
    Reason.NO_TRANSLATION: "No translation",
    Reason.UNSUPPORTED_PROTOCOL: "Unsupported protocol",
    Reason.FORWARDED: "packets sent to a pod",
    Reason.IN2OUT: "Good in2out packets processed",
    Reason.REJECT_SENT: "rejects sent",
    Reason.FRAGMENT_HELD: "fragments held until their first one comes",
    Reason.VIP_MATCHED: "packets for a VIP",
    Reason.FIRST_FRAGMENT: "first fragments",
    Reason.LATER_FRAGMENT: "later fragments whose ports are known",
    Reason.FRAGMENT_RELEASED: "held fragments released",
    Reason.EXISTING_SESSION: "packet from existing sessions",
    Reason.FIRST_PACKET: "first session packet",
    Reason.UNTRACKED: "untracked packet",
    Reason.CLASH_AVOIDED: "first packets moved to another pod because the reply would be ambiguous",
    Reason.IN2OUT_UNTRACKED: "in2out packets restored without a flow entry",
    Reason.ENCAPSULATED: "packets sent to a pod through a tunnel",
    Reason.TUNNEL_NO_SOURCE: "no source address is configured for tunnels of the pod's family",
    Reason.TUNNEL_GSO: "several segments under one header do not fit into a tunnel's packet",
    Reason.TUNNEL_TOO_LONG: "packet would exceed 65535 bytes, or the place for headers before it, in a tunnel",
    Reason.HALF_OPEN_EVICTED: "half-open flows forgotten to make room for new ones",
    Reason.CHOSEN_AFRESH: "new connections on a closed flow or a removed pod, pod chosen afresh",
    Reason.MASQUERADED: "packets that left with an address of the node as their source",
    Reason.PORT_TRANSLATED: "first packets whose source port was changed because the reply would be ambiguous",
    Reason.AFFINITY: "first packets sent to the pod that the client had before",
    Reason.MASQUERADE_EXHAUSTED: "no free source port found towards the pod",
    Reason.NO_MASQUERADE_ADDRESS: "source must be masqueraded, but there is no address to do it with",
    Reason.SOURCE_RANGE: "client outside the source ranges of the VIP",
    Reason.SESSION_CAP: "the VIP has as many flows as it may have",
    Reason.TENTATIVE: "segments of connections begun elsewhere, given on trial to the new pod of a slot",
    Reason.SECOND_CHANCE: "refusals of such a pod kept from the client, whose flow goes to the slot's former pod now",
    Reason.ICMP_BAD_CHECKSUM: "ICMP error with a wrong checksum",
    Reason.ICMP_ERROR_TRANSLATED: "ICMP errors translated, with the packet that they embed",
    Reason.TIME_EXCEEDED_SENT: "time exceeded sent",
    Reason.ERROR_SUPPRESSED: "an ICMP error is due, but this kind of packet must not be answered with one",
    Reason.ERROR_RATE_LIMITED: "an ICMP error is due, but suppressed by the rate limit",
    Reason.ECHO_ANSWERED: "echo requests to a VIP answered",
    Reason.FLOW_TABLE_FULL: "no room for a flow that cannot do without an entry in the flow table",
    Reason.PORTS_EXHAUSTED: "no free address and port of the NAT64 pool towards this pod",
    Reason.UNTRANSLATABLE_PROTOCOL: "protocol that is not translated between IPv4 and IPv6",
    Reason.UNTRANSLATABLE_ICMP: "ICMP message without a counterpart in the other family",
    Reason.UNTRANSLATABLE_FRAGMENT: "fragment of an ICMP message, which is not translated between IPv4 and IPv6",
    Reason.ZERO_CHECKSUM_FRAGMENT: "first fragment of a UDP datagram without a checksum, which IPv6 demands",
    Reason.SOURCE_ROUTE_SENT: "source route failed sent: an unexpired source route cannot be translated",
    Reason.PARAMETER_PROBLEM_SENT: "parameter problem sent: a routing header with segments left cannot be translated",
    Reason.PACKET_TOO_BIG_SENT: "packet too big or fragmentation needed sent",
    Reason.FRAGMENTED: "fragments made of translated packets, beside the first ones",
}

# How a packet ends that a node counts under the reason; see `end_of`.
_ENDS = (
    dict.fromkeys(
        (
            *(Reason(number) for number in range(Reason.TRUNCATED_ETHERNET, Reason.BAD_L4_LENGTH + 1)),
            Reason.NO_POD,
            Reason.REJECT_RATE_LIMITED,
            Reason.REJECT_SUPPRESSED,
            *(Reason(number) for number in range(Reason.FLOW_CLASH, Reason.SCTP_FRAGMENT + 1)),
            Reason.ICMP_BAD_CHECKSUM,
            Reason.ERROR_SUPPRESSED,
            Reason.ERROR_RATE_LIMITED,
            *(Reason(number) for number in range(Reason.FLOW_TABLE_FULL, Reason.ZERO_CHECKSUM_FRAGMENT + 1)),
            Reason.MASQUERADE_EXHAUSTED,
            Reason.NO_MASQUERADE_ADDRESS,
            Reason.SOURCE_RANGE,
            Reason.SESSION_CAP,
            Reason.SECOND_CHANCE,
            Reason.TUNNEL_NO_SOURCE,
            Reason.TUNNEL_GSO,
            Reason.TUNNEL_TOO_LONG,
        ),
        Outcome.DROP,
    )
    | dict.fromkeys(
        (Reason.NOT_IP, Reason.NO_VIP, Reason.NO_TRANSLATION, Reason.UNSUPPORTED_PROTOCOL), Outcome.PASS
    )
    | dict.fromkeys(
        (
            Reason.FORWARDED,
            Reason.IN2OUT,
            Reason.REJECT_SENT,
            Reason.ICMP_ERROR_TRANSLATED,
            Reason.TIME_EXCEEDED_SENT,
            Reason.ECHO_ANSWERED,
            Reason.SOURCE_ROUTE_SENT,
            Reason.PARAMETER_PROBLEM_SENT,
            Reason.PACKET_TOO_BIG_SENT,
            Reason.ENCAPSULATED,
        ),
        Outcome.TRANSMIT,
    )
    | {Reason.FRAGMENT_HELD: Outcome.HELD}
)


def end_of(node: Node, reason: Reason) -> Outcome:
    """What became of packets that `node` counted under `reason`; NONE for an event beside the outcome."""
    if reason is Reason.TTL_EXPIRED:  # kp-icmp answers, unless it expired on an ICMP error
        return Outcome.DROP if node is Node.ICMP_ERROR else Outcome.NONE
    return _ENDS.get(reason, Outcome.NONE)


# Where a node may send a packet on; whatever it does not send on ends there.
NODE_NEXT = {
    Node.INPUT: (Node.FRAGMENT, Node.LOOKUP),
    Node.FRAGMENT: (Node.LOOKUP,),
    Node.LOOKUP: (
        Node.ICMP_ERROR,
        Node.NODEPORT4,
        Node.NODEPORT6,
        Node.BALANCE,
        Node.NAT4_IN2OUT,
        Node.NAT6_IN2OUT,
        Node.NAT46_IN2OUT,
        Node.NAT64_IN2OUT,
        Node.ICMP,
    ),
    Node.ICMP_ERROR: (Node.GRE, Node.IPIP, Node.GUE, Node.L3DSR),
    Node.NODEPORT4: (Node.BALANCE,),
    Node.NODEPORT6: (Node.BALANCE,),
    Node.BALANCE: (
        Node.MASQUERADE,
        Node.NAT44,
        Node.NAT66,
        Node.NAT46,
        Node.NAT64,
        Node.REJECT,
        Node.GRE,
        Node.IPIP,
        Node.GUE,
        Node.L3DSR,
        Node.ICMP,
    ),
    Node.MASQUERADE: (Node.NAT44, Node.NAT66),
    Node.NAT44: (),
    Node.NAT66: (),
    Node.NAT46: (Node.ICMP,),
    Node.NAT64: (Node.ICMP,),
    Node.NAT4_IN2OUT: (Node.ICMP,),
    Node.NAT6_IN2OUT: (Node.ICMP,),
    Node.NAT46_IN2OUT: (Node.ICMP,),
    Node.NAT64_IN2OUT: (Node.ICMP,),
    Node.REJECT: (),
    Node.GRE: (),
    Node.IPIP: (),
    Node.GUE: (),
    Node.L3DSR: (),
    Node.ICMP: (),
}


class VipCounter(IntEnum):
    """Columns of ``WorkerState.vip_counters``."""

    NEXT_PACKET = 0
    FIRST_PACKET = 1
    UNTRACKED_PACKET = 2
    NO_SERVER = 3
    TO_POD_BYTES = 4  # of the packets that the first three columns count; IP total length as received
    FROM_POD_PACKETS = 5
    FROM_POD_BYTES = 6
    EVICTED = 7


VIP_COUNTER_TEXT = {
    VipCounter.NEXT_PACKET: "packet from existing sessions",
    VipCounter.FIRST_PACKET: "first session packet",
    VipCounter.UNTRACKED_PACKET: "untracked packet",
    VipCounter.NO_SERVER: "no server configured",
    VipCounter.TO_POD_BYTES: "bytes to pods",
    VipCounter.FROM_POD_PACKETS: "packets from pods",
    VipCounter.FROM_POD_BYTES: "bytes from pods",
    VipCounter.EVICTED: "half-open flow evicted",
}


class PodCounter(IntEnum):
    """Columns of ``WorkerState.pod_counters``. Bytes are IP total lengths as received."""

    TO_POD_PACKETS = 0
    TO_POD_BYTES = 1
    FROM_POD_PACKETS = 2
    FROM_POD_BYTES = 3
    FLOWS = 4  # created, not alive


POD_COUNTER_TEXT = {
    PodCounter.TO_POD_PACKETS: "packets to the pod",
    PodCounter.TO_POD_BYTES: "bytes to the pod",
    PodCounter.FROM_POD_PACKETS: "packets from the pod",
    PodCounter.FROM_POD_BYTES: "bytes from the pod",
    PodCounter.FLOWS: "flows created",
}


class PacketFlag(IntFlag):
    """Bits of a packet's record, set by the driver (VNET ... GSO) or by the input node (the rest)."""

    VNET = 1  # a virtio_net_hdr of 10 bytes lies at the record's `vnet` offset
    PARTIAL_CHECKSUM = (
        2  # the L4 checksum field holds only the pseudo-header sum (VIRTIO_NET_HDR_F_NEEDS_CSUM)
    )
    GSO = 4  # one of several segments' worth of payload under one header
    FRAGMENT = 8  # any fragment
    LATER_FRAGMENT = 16  # a fragment without an L4 header
    NODEPORT = 32  # addressed to a node address and a node port
    UNTRACKED = 64  # translated without an entry in the flow table
    TRANSLATED = 2048  # its flow's source is not what the client wrote
    CLASH_AVOIDED = 0x2000  # went to another pod than the ring's, because the reply would be ambiguous
    NEW_FLOW = 0x4000  # the first packet of its flow
    TRACED = 0x8000  # a trace record is written at each node
