"""The BPF programs: which packets leave the kernel's way and come up to the workers.

`steer` runs at the TCX ingress of the node's interfaces.  It looks for the packet's destination among the VIPs and
node ports (forward), then for its source among the pods (return), whose packets count only where the pods are
(reply_path.py, or marks).  A hit is redirected to the egress of ku0, which is to arrive on ku1, where a worker reads
it; everything else goes on as if we were not there.  `reply` is the same
without the forward half, at the egress of the interfaces: for replies of pods in the node's own network namespace,
which never come in anywhere, and for the node's own errors about what it could not bring to a pod.  `guard` and
`drop` keep the two ends of the pair clean.  What a packet's flow is says flow.py; which of several workers gets it,
choose.py.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import NamedTuple

from llvmlite import ir

from .bpf import Verdict
from .choose import choose_worker, worker_of
from .emit import Program, be16, i8, i16, i32, i64
from .flow import Flow, MessageBit, read_flow
from .keys import FRAGMENT, PREFIX_KEY_SIZE, STEER_KEY_SIZE, ConfigBit, Count, KeyBit
from .links import NEXT_HOP4, NEXT_HOP6
from .parts import ETH_P_IPV6, leave_to_others, load, read_config, require_mark
from .parts import count as count_one
from .reply_path import require_reply_path

__all__ = ["Builder", "drop", "guard", "reply", "steer", "worker_of"]

Builder = Callable[[int, int, bool], Program]  # (ku0's interface index, workers, generic_xdp)

_REDIR_NEIGH_BYTES = 20  # ends before Flow.SOURCE_PORT
_LOOPBACK_IFINDEX = 1  # in every network namespace


def steer(tunnel_ifindex: int, workers: int = 1, generic_xdp: bool = False) -> Program:
    """For the ingress of the node's interfaces; maps: steer, prefixes, config, interfaces, counts, fragments.

    `generic_xdp`: at ku1 stands an XDP program in generic mode.  A plain redirect leaves a mark on a packet that keeps
    such programs from seeing it (`skb_is_redirected()` in `netif_receive_generic_xdp()`), so packets go by way of
    ku1's entry in the neighbour table, which sets their MAC addresses. See also `choose_worker`.
    """
    way = _Way(tunnel_ifindex, workers, generic_xdp)
    program = Program("ku_steer")
    foreign = program.label("foreign")
    leave_to_others(program, foreign)
    flow = read_flow(program, foreign, fragments=workers > 1)
    config = read_config(program, foreign)
    strict = program.build.and_(config, i32(ConfigBit.STRICT | ConfigBit.MARKED))
    strict = program.equal(strict, ConfigBit.STRICT)
    forward, ahead = program.label("forward"), program.label("ahead")
    judge, back, refused = program.label("judge"), program.label("return"), program.label("refused")
    _go_if_destination_is_ours(program, flow, config, forward)
    _require_mark(program, flow, config, program.context("ifindex"), foreign)
    with program.when(program.has_bits(config, ConfigBit.TRANSLATED)):
        _go_if_in_prefix(program, flow, KeyBit.TRANSLATED, judge)
    _go_if_source_is_ours(program, flow, judge, foreign)
    program.go(foreign)

    program.at(forward)
    # A fragment for the node's address is a node port's, or the reply to something masqueraded.
    fragment = program.equal(flow.load(flow.PROTOCOL, i8), FRAGMENT)
    program.require(program.build.and_(fragment, strict), otherwise=ahead)
    flow.store(flow.AHEAD, i8(1))
    _go_if_source_is_ours(program, flow, judge, ahead)
    program.go(ahead)
    program.at(judge)
    program.require(strict, otherwise=back)
    require_reply_path(program, flow, flow.scratch, tunnel_ifindex, refused, again=foreign)
    program.go_if(program.nonzero(flow.load(flow.AHEAD, i8)), ahead)
    program.go(back)
    program.at(ahead)
    _send_up(program, Count.FORWARD, flow, flow.SOURCE, flow.SOURCE_PORT, way)
    program.at(back)
    _send_up(program, Count.RETURN, flow, flow.DESTINATION, flow.DESTINATION_PORT, way)
    _let_pass(program, refused, Count.REFUSED)
    _let_pass(program, foreign, Count.FOREIGN)
    return program


def reply(tunnel_ifindex: int, workers: int = 1, generic_xdp: bool = False) -> Program:
    """For the egress of the node's interfaces: replies of processes on the node that are pods of a service.

    Only what was made here is looked at.  Packets that the workers send enter at ku0, so they do not come back up.
    Restricting replies to marked interfaces means `lo` here, which stands for the node itself.  The node's own ICMP
    errors about packets to pods (the link to the pod is too narrow for one, or the pod is gone) come up always: a
    client does not know the packet that they embed.
    """
    way = _Way(tunnel_ifindex, workers, generic_xdp)
    program = Program("ku_reply")
    foreign = program.label("foreign")
    program.require(program.equal(program.context("ingress_ifindex"), 0), otherwise=foreign)
    flow = read_flow(program, foreign, fragments=workers > 1)
    config = read_config(program, foreign)
    back, judge = program.label("return"), program.label("judge")
    program.go_if(program.has_bits(flow.load(flow.MESSAGE, i8), MessageBit.ERROR), judge)
    program.require(program.has_bits(config, ConfigBit.LOCAL_PODS), otherwise=foreign)
    _require_mark(program, flow, config, i32(_LOOPBACK_IFINDEX), foreign)
    program.go(judge)
    program.at(judge)
    _go_if_source_is_ours(program, flow, back, foreign)
    program.go(foreign)

    program.at(back)
    _send_up(program, Count.RETURN, flow, flow.DESTINATION, flow.DESTINATION_PORT, way)
    program.at(foreign)
    program.leave(Verdict.NEXT)
    return program


def guard(tunnel_ifindex: int, workers: int = 1, generic_xdp: bool = False) -> Program:
    """For the egress of ku0: no packet goes around in circles, and none comes up past `steer`.

    A worker passes on what is not its own.  If the node then routes that packet to a VIP's prefix, it would come up
    again until its TTL ends.  With several workers, packets that the node itself routes here have no queue yet.

    There are routes through ku0 to translated clients, too: a reply to one that `steer` has left alone because it came
    in where it may not would be brought here by the node. It ends.
    """
    program = Program("ku_guard")
    onward, forwarded, reading = (program.label(name) for name in ("pass", "forwarded", "reading"))
    circling = program.label("circling")
    came_from = program.context("ingress_ifindex")
    program.go_if(program.equal(came_from, tunnel_ifindex), circling)
    program.go_if(program.nonzero(came_from), forwarded)
    if workers > 1:
        program.require(program.equal(program.context("queue_mapping"), 0), otherwise=onward)
        program.go(reading)
    else:
        program.go(onward)
    program.at(forwarded)
    _require_translated(program, onward)
    program.go(reading)

    program.at(reading)
    flow = read_flow(program, onward, fragments=workers > 1)
    if workers > 1:
        judge = program.label("judge")
        program.go_if(program.nonzero(came_from), judge)
        choose_worker(program, flow, flow.SOURCE, flow.SOURCE_PORT, workers, generic_xdp)
        program.go(onward)
        program.at(judge)
    config = read_config(program, onward)
    strict = program.label("strict")
    program.require(program.has_bits(config, ConfigBit.MARKED), otherwise=strict)
    _require_mark(program, flow, config, came_from, circling)
    program.go(onward)
    program.at(strict)
    program.require(program.has_bits(config, ConfigBit.STRICT), otherwise=onward)
    lookup = flow.scratch
    require_reply_path(program, flow, lookup, tunnel_ifindex, circling, again=circling, came_in="ingress_ifindex")
    program.go(onward)
    program.at(circling)
    program.leave(Verdict.DROP)
    program.at(onward)
    program.leave(Verdict.NEXT)
    return program


def drop() -> Program:
    """For the ingress of ku1: AF_PACKET has seen the packet before, and nobody else shall."""
    program = Program("ku_drop")
    program.leave(Verdict.DROP)
    return program


# --- one function for each thing that the programs do ----------------------------------------------------


def _go_if_destination_is_ours(program: Program, flow: Flow, config: ir.Value, label: ir.Block) -> None:
    """VIP or node port: exactly, then the whole address, then the longest prefix."""
    _go_if_listed(program, flow, flow.DESTINATION, flow.DESTINATION_PORT, 0, label)
    with program.when(program.has_bits(config, ConfigBit.PREFIXES)):
        _go_if_in_prefix(program, flow, 0, label)


def _go_if_in_prefix(program: Program, flow: Flow, kind: int, label: ir.Block) -> None:
    """The destination lies in a prefix of this kind: VIPs' (0), or translated clients' (KeyBit.TRANSLATED)."""
    key = flow.scratch  # of the rest of which nothing is read
    key.store(0, i32(8 * (PREFIX_KEY_SIZE - 4)))
    key.store(4, program.build.or_(flow.load(flow.FAMILY, i8), i8(kind)))
    for byte in range(16):  # the family's byte before it leaves the address unaligned
        key.store(5 + byte, flow.load(flow.DESTINATION + byte, i8))
    program.go_if(program.nonzero(program.look_up("prefixes", key)), label)


def _require_translated(program: Program, otherwise: ir.Block) -> None:
    """The destination is what some client is called; nothing but the destination is read, as this is asked often."""
    config = read_config(program, otherwise)
    program.require(program.has_bits(config, ConfigBit.TRANSLATED), otherwise=otherwise)
    key = program.buffer(PREFIX_KEY_SIZE)
    key.store(0, i32(8 * (PREFIX_KEY_SIZE - 4)))
    six, known = program.equal(program.context("protocol"), be16(ETH_P_IPV6)), program.label("destination")
    for family, offset, length in ((KeyBit.IPV6, 24, 16), (0, 16, 4)):  # of the address in the IP header
        other = program.label("family")
        program.require(six if family else program.build.not_(six), otherwise=other)
        key.store(4, i8(family | KeyBit.TRANSLATED))
        load(program, i32(offset), key.address(PREFIX_KEY_SIZE - length), length, otherwise)
        program.go(known)
        program.at(other)
    program.go(otherwise)
    program.at(known)
    program.require(program.nonzero(program.look_up("prefixes", key)), otherwise=otherwise)


def _go_if_source_is_ours(program: Program, flow: Flow, label: ir.Block, foreign: ir.Block) -> None:
    """A pod: exactly, then the whole address. What pods ask of their own accord is nobody's reply."""
    program.go_if(program.has_bits(flow.load(flow.MESSAGE, i8), MessageBit.REQUEST), foreign)
    _go_if_listed(program, flow, flow.SOURCE, flow.SOURCE_PORT, KeyBit.RETURN, label)


def _go_if_listed(
    program: Program, flow: Flow, address: int, port: int, direction: int, label: ir.Block
) -> None:
    """Look in the map `steer` for {address, port, protocol}, then for {address, 0, 0}; see keys.py."""
    key = program.buffer(STEER_KEY_SIZE)
    key.store(0, flow.load(address, i64))
    key.store(8, flow.load(address + 8, i64))
    key.store(16, flow.load(port, i16))
    key.store(18, flow.load(flow.PROTOCOL, i8))
    key.store(19, program.build.or_(flow.load(flow.FAMILY, i8), i8(direction)))
    program.go_if(program.nonzero(program.look_up("steer", key)), label)
    key.store(16, i16(0))
    key.store(18, i8(0))
    program.go_if(program.nonzero(program.look_up("steer", key)), label)


def _require_mark(
    program: Program, flow: Flow, config: ir.Value, ifindex: ir.Value, foreign: ir.Block
) -> None:
    """Where replies are restricted to marked interfaces: this one is marked for this family."""
    with program.when(program.has_bits(config, ConfigBit.MARKED)):
        require_mark(program, program.build.zext(flow.load(flow.MARK, i8), i32), ifindex, foreign)


class _Way(NamedTuple):
    """How packets come up: what a Builder is told."""

    ifindex: int
    workers: int
    generic_xdp: bool


def _send_up(program: Program, count: Count, flow: Flow, address: int, port: int, way: _Way) -> None:
    """Redirect to the egress of ku0. `address` and `port` are where the flow holds the client's."""
    count_one(program, "counts", count)
    if way.workers > 1:
        choose_worker(program, flow, address, port, way.workers, way.generic_xdp)
    if way.generic_xdp:
        verdict = _redirect_to_neighbour(program, flow, way.ifindex)
    else:
        verdict = program.call("redirect", i32(way.ifindex), i64(0))
    program.leave(program.build.trunc(verdict, i32))


def _redirect_to_neighbour(program: Program, flow: Flow, ifindex: int) -> ir.Value:
    """With the next hop of the packet's family, `struct bpf_redir_neigh`: family, then the address.

    It lies where the flow's addresses were, which nobody needs any more: the stack has no room for another buffer.
    """
    flow.store(0, i32(socket.AF_INET))
    flow.store(4, i32(int.from_bytes(NEXT_HOP4.packed, "little")))
    with program.when(program.has_bits(flow.load(flow.FAMILY, i8), KeyBit.IPV6)):
        flow.store(0, i32(socket.AF_INET6))
        for offset in range(0, 16, 4):
            flow.store(4 + offset, i32(int.from_bytes(NEXT_HOP6.packed[offset : offset + 4], "little")))
    return program.call("redirect_neigh", i32(ifindex), flow.address(), i32(_REDIR_NEIGH_BYTES), i64(0))


def _let_pass(program: Program, label: ir.Block, count: Count) -> None:
    program.at(label)
    count_one(program, "counts", count)
    program.leave(Verdict.NEXT)
