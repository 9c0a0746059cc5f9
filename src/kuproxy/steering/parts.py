"""What several of the programs do: whose packets are looked at, which replies count, reading, writing, counting."""

from __future__ import annotations

from enum import IntEnum

from llvmlite import ir

from .emit import Program, i32, i64

__all__ = [
    "ETH_P_IP",
    "ETH_P_IPV6",
    "count",
    "expect",
    "leave_to_others",
    "load",
    "read_config",
    "require_mark",
    "store",
]

ETH_P_IP, ETH_P_IPV6 = 0x0800, 0x86DD

_PACKET_HOST = 0  # include/uapi/linux/if_packet.h: addressed to us, not only overheard
_VLAN_ID = 0x0FFF
_FROM_NETWORK_HEADER = 1  # enum bpf_hdr_start_off: BPF_HDR_START_NET, wherever the link layer's header ends


def leave_to_others(program: Program, foreign: ir.Block) -> None:
    """Not ours: frames for other hosts, and frames with a VLAN id, which their VLAN's interface will see.

    The kernel has already moved the tag from the frame to the context. Id 0 is a priority, not a VLAN.
    """
    program.require(program.equal(program.context("pkt_type"), _PACKET_HOST), otherwise=foreign)
    tagged = program.nonzero(program.context("vlan_present"))
    other_vlan = program.has_bits(program.context("vlan_tci"), _VLAN_ID)
    program.go_if(program.build.and_(tagged, other_vlan), foreign)


def read_config(program: Program, foreign: ir.Block) -> ir.Value:
    """The word of `ConfigBit`s that user space sets."""
    place = program.look_up("config", program.index(0))
    program.require(program.nonzero(place), otherwise=foreign)  # never null, but the verifier wants to see it
    return program.value(place, i32)


def require_mark(program: Program, wanted: ir.Value, ifindex: ir.Value, foreign: ir.Block) -> None:
    """The interface is marked for the family whose mark (keys.MARK4, MARK6; 32 bits) is wanted."""
    place = program.look_up("interfaces", program.index(ifindex))
    program.require(program.nonzero(place), otherwise=foreign)
    marks = program.value(place, i32)
    program.require(program.nonzero(program.build.and_(marks, wanted)), otherwise=foreign)


def count(program: Program, counters: str, index: IntEnum) -> None:
    """One more in a per-CPU array; interrupts of this kind do not nest, so a plain addition will do."""
    place = program.look_up(counters, program.index(int(index)))
    with program.when(program.nonzero(place)):
        program.set_value(place, 0, program.build.add(program.value(place, i64), i64(1)))


def load(program: Program, offset: ir.Value, target: ir.Value, length: int, failed: ir.Block) -> None:
    """Copy packet bytes to the stack; offsets count from the IP header. Fails where the packet ends before."""
    outcome = program.call(
        "skb_load_bytes_relative", program.packet, offset, target, i32(length), i32(_FROM_NETWORK_HEADER)
    )
    expect(program, outcome, failed)


def store(program: Program, offset: int, source: ir.Value, length: int, failed: ir.Block) -> None:
    """Write packet bytes; checksums are looked after."""
    outcome = program.call("skb_store_bytes", program.packet, i32(offset), source, i32(length), i64(0))
    expect(program, outcome, failed)


def expect(program: Program, outcome: ir.Value, failed: ir.Block) -> None:
    """A helper has done its work."""
    program.require(program.equal(outcome, 0), otherwise=failed)
