"""Where a pod's replies may come in: by the interface through which this node sends packets to that pod.

That is strict reverse-path filtering (RFC 3704 section 2.2, `fib_validate_source()`), limited to what would be restored
in a VIP's name: whoever forges a pod's address on another link than the pod's does not reach the return path.  The
kernel is asked for each packet, so that whatever changes its routes counts at once, and without a control process, too.

It is asked as it will route what a worker sends to the pod: in at ku0, from the client (policy routing included).
An interface answers for its master and for those with which it shares a route of several next hops; of both user
space keeps the map `related` (relations.py).  Where the kernel does not tell (a route that encapsulates by itself, or
forwarding is switched off at ku0), a reply is taken as without this.
"""

from __future__ import annotations

import socket

from llvmlite import ir

from .emit import Buffer, Program, i8, i16, i32, i64
from .flow import Flow
from .keys import FRAGMENT

__all__ = ["LOOKUP_SIZE", "require_reply_path"]

LOOKUP_SIZE = 64  # sizeof(struct bpf_fib_lookup)
# Offsets in it.
_FAMILY, _PROTOCOL, _SPORT, _DPORT, _IFINDEX, _SOURCE, _DESTINATION = 0, 1, 2, 4, 8, 16, 32
_SKIP_NEIGH = 4  # BPF_FIB_LOOKUP_SKIP_NEIGH: its MAC address is nothing to us
# enum of BPF_FIB_LKUP_RET_*: SUCCESS, NO_NEIGH, FRAG_NEEDED name the interface; FWD_DISABLED, UNSUPP_LWT do not tell.
_FOUND = (0, 7, 8)
_UNTOLD = (5, 6)
_NOWHERE = -1  # no interface's index
_LOOPBACK_IFINDEX = 1  # in every network namespace
_MASTER, _AGAIN, _GROUP = 0, 4, 8  # in a value of `related`


def require_reply_path(
    program: Program,
    flow: Buffer,
    lookup: Buffer,
    tunnel_ifindex: int,
    refused: ir.Block,
    again: ir.Block,
    came_in: str = "ifindex",
) -> None:
    """Go on with a reply that came in where its pod is; `refused` with others, which `again` may see at their master.

    `flow` has addresses, ports, protocol and family where `Flow` has them.  `lookup` is overwritten, LOOKUP_SIZE bytes.
    `came_in`: the field of the context that has the interface. What comes in at `lo` was made here.
    """
    build, taken = program.build, program.label("reply_path")
    ifindex = program.context(came_in)
    program.go_if(program.equal(ifindex, _LOOPBACK_IFINDEX), taken)
    _ask(program, flow, lookup, tunnel_ifindex)
    outcome = program.call(
        "fib_lookup", program.packet, lookup.address(), i32(LOOKUP_SIZE), i32(_SKIP_NEIGH)
    )
    outcome = build.trunc(outcome, i32)
    program.go_if(program.one_of(outcome, _UNTOLD), taken)
    way = build.select(program.one_of(outcome, _FOUND), lookup.load(_IFINDEX, i32), i32(_NOWHERE))
    program.go_if(program.equal(way, ifindex), taken)
    mine = program.look_up("related", program.index(ifindex))
    program.require(program.nonzero(mine), otherwise=refused)
    program.go_if(program.equal(program.value(mine, i32, _MASTER), way), taken)
    group = program.value(mine, i32, _GROUP)
    alone = program.label("alone")
    program.require(program.nonzero(group), otherwise=alone)
    other = program.look_up("related", program.index(way))
    program.require(program.nonzero(other), otherwise=alone)
    program.go_if(program.equal(program.value(other, i32, _GROUP), group), taken)
    program.go(alone)
    program.at(alone)
    program.go_if(program.nonzero(program.value(mine, i32, _AGAIN)), again)
    program.go(refused)
    program.at(taken)


def _ask(program: Program, flow: Buffer, lookup: Buffer, tunnel_ifindex: int) -> None:
    """The way of a packet from the client to the pod, that is of the flow's other direction."""
    build = program.build
    lookup.clear()
    protocol = flow.load(Flow.PROTOCOL, i8)
    lookup.store(_PROTOCOL, build.select(program.equal(protocol, FRAGMENT), i8(0), protocol))
    lookup.store(_SPORT, flow.load(Flow.DESTINATION_PORT, i16))
    lookup.store(_DPORT, flow.load(Flow.SOURCE_PORT, i16))
    lookup.store(_IFINDEX, i32(tunnel_ifindex))
    four, done = program.label("way4"), program.label("way")
    program.require(program.nonzero(flow.load(Flow.FAMILY, i8)), otherwise=four)
    lookup.store(_FAMILY, i8(socket.AF_INET6))
    for word in (0, 8):
        lookup.store(_SOURCE + word, flow.load(Flow.DESTINATION + word, i64))
        lookup.store(_DESTINATION + word, flow.load(Flow.SOURCE + word, i64))
    program.go(done)
    program.at(four)
    lookup.store(_FAMILY, i8(socket.AF_INET))
    lookup.store(_SOURCE, flow.load(Flow.DESTINATION + 12, i32))
    lookup.store(_DESTINATION, flow.load(Flow.SOURCE + 12, i32))
    program.go(done)
    program.at(done)
