"""BPF programs written in Python: a small typed emitter over LLVM's intermediate representation.

llvmlite comes with Numba and contains LLVM's BPF back end, so that a program can be made to measure when the
daemon starts (interface numbers and worker counts become constants), and no compiler is needed on the node.
A `Program` offers what our programs do: read a context field by its name, call a helper by its name, use a zeroed
stack buffer, look into a map, and leave early.

Rules of the verifier that shape this file: stack bytes that a helper reads should be initialised (a partly
uninitialised key is accepted for root without a word, and then matches nothing), so every buffer is zeroed
first; stack accesses must be aligned to their size; packet bytes come through helpers, which check bounds
themselves.  Conditions become branches to labelled blocks, as in the kernel's own style of `goto out`.

Little-endian machines only: multi-byte packet fields are compared with byte-swapped constants (`be16`).
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from llvmlite import binding as llvm
from llvmlite import ir

from ..errors import SteeringError
from .bpf import LoadedProgram, Map, ProgramKind

__all__ = ["CONTEXT", "HELPERS", "Buffer", "Program", "be16", "i8", "i16", "i32", "i64"]

i8, i16, i32, i64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
pointer = i8.as_pointer()


class Helper(NamedTuple):
    """A function of the kernel that programs may call (`enum bpf_func_id`)."""

    number: int
    since: str  # the Linux version that brought it to programs of this type
    returns: ir.Type = i64


HELPERS = {
    "map_lookup_elem": Helper(1, "3.19", pointer),
    "map_update_elem": Helper(2, "3.19"),
    "map_delete_elem": Helper(3, "3.19"),
    "ktime_get_ns": Helper(5, "4.1"),
    "skb_store_bytes": Helper(9, "4.1"),
    "l3_csum_replace": Helper(10, "4.1"),
    "l4_csum_replace": Helper(11, "4.1"),
    "redirect": Helper(23, "4.4"),
    "csum_diff": Helper(28, "4.6"),
    "redirect_map": Helper(51, "4.14"),
    "skb_load_bytes": Helper(26, "4.5"),
    "skb_load_bytes_relative": Helper(68, "4.18"),
    "fib_lookup": Helper(69, "4.18"),
    "redirect_neigh": Helper(152, "5.10"),
    "redirect_peer": Helper(155, "5.10"),
}

# Offsets in `struct __sk_buff`; all are 32 bits wide, and the verifier refuses some narrower accesses.
CONTEXT = {
    "len": 0,
    "pkt_type": 4,
    "mark": 8,
    "queue_mapping": 12,
    "protocol": 16,  # network byte order
    "vlan_present": 20,
    "vlan_tci": 24,
    "ingress_ifindex": 36,  # where the packet entered the node; 0: it was made here
    "ifindex": 40,
    "gso_size": 176,
}
# The same in `struct xdp_md`.
XDP_CONTEXT = {"ingress_ifindex": 12, "rx_queue_index": 16}


def be16(value: int) -> int:
    """A 16-bit constant as a little-endian machine loads it from a packet."""
    return int.from_bytes(value.to_bytes(2, "big"), "little")


class Buffer:
    """Bytes on the program's stack (512 in all), aligned to 8 and zeroed where they are declared."""

    def __init__(self, program: Program, size: int) -> None:
        self._program, self.size = program, size
        words = -(-size // 8)
        with program.build.goto_entry_block():
            memory = program.build.alloca(ir.ArrayType(i64, words))
            self._base = program.build.bitcast(memory, pointer)
        self.clear()

    def clear(self) -> None:
        for offset in range(0, self.size, 8):
            self.store(offset, i64(0))

    def address(self, offset: int = 0) -> ir.Value:
        return self._program.build.gep(self._base, [i64(offset)])

    def load(self, offset: int, kind: ir.IntType) -> ir.Value:
        build = self._program.build
        return build.load(build.bitcast(self.address(offset), kind.as_pointer()))

    def store(self, offset: int, value: ir.Value) -> None:
        build = self._program.build
        build.store(value, build.bitcast(self.address(offset), value.type.as_pointer()))


class Program:
    """A BPF program under construction: one function, whose only argument is the context.

    That is a `struct __sk_buff *`, of an XDP program a `struct xdp_md *`.

    `build` is llvmlite's IRBuilder, for arithmetic.  Finish with `load()`.
    """

    def __init__(self, name: str, kind: ProgramKind = ProgramKind.SCHED_CLS) -> None:
        if sys.byteorder != "little":
            raise SteeringError("steering programs are written for little-endian machines")
        self.name, self._kind = name, kind
        self._fields = XDP_CONTEXT if kind == ProgramKind.XDP else CONTEXT
        self.module = ir.Module(name)
        self.module.triple = "bpfel"
        self._maps: dict[str, ir.GlobalVariable] = {}
        self._needs: dict[str, str] = {}
        self._index: Buffer | None = None
        self._function = ir.Function(self.module, ir.FunctionType(i32, [pointer]), name)
        self._function.section = "program"
        # Stack slots and constants stand in a block of their own, before everything else.
        entry = self._function.append_basic_block("entry")
        start = self._function.append_basic_block("start")
        self.build = ir.IRBuilder(entry)
        self.build.branch(start)
        self.build.position_at_end(start)

    # --- what a program touches --------------------------------------------------------------------------

    def context(self, field: str) -> ir.Value:
        """A field of the packet's context, 32 bits."""
        return self.build.load(self._context_address(field))

    def set_context(self, field: str, value: ir.Value) -> None:
        self.build.store(value, self._context_address(field))

    def _context_address(self, field: str) -> ir.Value:
        place = self.build.gep(self._function.args[0], [i64(self._fields[field])])
        return self.build.bitcast(place, i32.as_pointer())

    def buffer(self, size: int) -> Buffer:
        return Buffer(self, size)

    def index(self, value: ir.Value | int) -> Buffer:
        """A key of 4 bytes, for the next look into a map and no longer: all of them lie in one place."""
        if self._index is None:
            self._index = self.buffer(4)
        self._index.store(0, value if isinstance(value, ir.Value) else i32(value))
        return self._index

    def call(self, helper: str, *arguments: Any) -> ir.Value:
        """Call a kernel helper. The context is `Program.packet`; plain integers go as 64 bits."""
        number, since, returns = HELPERS[helper]
        self._needs[helper] = since
        values = [value if isinstance(value, ir.Value) else i64(value) for value in arguments]
        kind = ir.FunctionType(returns, [value.type for value in values]).as_pointer()
        return self.build.call(self.build.inttoptr(i64(number), kind), values)

    @property
    def packet(self) -> ir.Value:
        """The context as a helper's argument."""
        return self._function.args[0]

    def map(self, name: str) -> ir.Value:
        """A reference to a map, which `load()` binds by this name."""
        if name not in self._maps:
            symbol = ir.GlobalVariable(self.module, ir.ArrayType(i8, 8), name)
            symbol.section = ".maps"
            symbol.initializer = ir.Constant(symbol.value_type, None)
            self._maps[name] = symbol
        return self.build.bitcast(self._maps[name], pointer)

    def look_up(self, map_name: str, key: Buffer) -> ir.Value:
        """The address of the value, null when there is none."""
        return self.call("map_lookup_elem", self.map(map_name), key.address())

    def update(self, map_name: str, key: Buffer, value: Buffer) -> None:
        """Enter the value, or replace what is there. A map that is full goes without it."""
        any_value = 0  # BPF_ANY
        self.call("map_update_elem", self.map(map_name), key.address(), value.address(), any_value)

    def value(self, place: ir.Value, kind: ir.IntType, offset: int = 0) -> ir.Value:
        """What lies at an address that `look_up` returned and that was found not to be null."""
        return self.build.load(self.build.bitcast(self.within(place, offset), kind.as_pointer()))

    def within(self, place: ir.Value, offset: int) -> ir.Value:
        """An address inside a value."""
        return self.build.gep(place, [i64(offset)]) if offset else place

    def set_value(self, place: ir.Value, offset: int, value: ir.Value) -> None:
        """Write into a map's value; every CPU sees it."""
        self.build.store(value, self.build.bitcast(self.within(place, offset), value.type.as_pointer()))

    def add_to_value(self, place: ir.Value, offset: int, amount: ir.Value) -> None:
        """Add to a word of a map's value, whatever other CPUs add at the same time (`lock xadd`, Linux 3.18)."""
        target = self.build.bitcast(self.within(place, offset), amount.type.as_pointer())
        self.build.atomic_rmw("add", target, amount, "monotonic")

    # --- conditions and ways -----------------------------------------------------------------------------

    def equal(self, left: ir.Value, right: ir.Value | int) -> ir.Value:
        return self.build.icmp_unsigned("==", left, self._like(left, right))

    def at_least(self, left: ir.Value, right: ir.Value | int) -> ir.Value:
        return self.build.icmp_unsigned(">=", left, self._like(left, right))

    def one_of(self, value: ir.Value, choices: tuple[int, ...]) -> ir.Value:
        result = self.equal(value, choices[0])
        for choice in choices[1:]:
            result = self.build.or_(result, self.equal(value, choice))
        return result

    def has_bits(self, value: ir.Value, bits: int) -> ir.Value:
        """Any of these bits is set."""
        return self.nonzero(self.build.and_(value, self._like(value, bits)))

    def nonzero(self, value: ir.Value) -> ir.Value:
        """Not zero; of an address: not null."""
        if isinstance(value.type, ir.PointerType):
            return self.build.icmp_unsigned("!=", value, ir.Constant(value.type, None))
        return self.build.icmp_unsigned("!=", value, value.type(0))

    @staticmethod
    def _like(model: ir.Value, value: ir.Value | int) -> ir.Value:
        return value if isinstance(value, ir.Value) else model.type(value)

    def label(self, name: str) -> ir.Block:
        """A place to go to; what happens there is written after `at(label)`."""
        return self._function.append_basic_block(name)

    def at(self, label: ir.Block) -> None:
        """Go on writing there."""
        self.build.position_at_end(label)

    def go(self, label: ir.Block) -> None:
        self.build.branch(label)

    def go_if(self, condition: ir.Value, label: ir.Block) -> None:
        onward = self.label("onward")
        self.build.cbranch(condition, label, onward)
        self.at(onward)

    def require(self, condition: ir.Value, otherwise: ir.Block) -> None:
        onward = self.label("onward")
        self.build.cbranch(condition, onward, otherwise)
        self.at(onward)

    @contextmanager
    def when(self, condition: ir.Value) -> Iterator[None]:
        with self.build.if_then(condition):
            yield

    def leave(self, verdict: ir.Value | int) -> None:
        self.build.ret(verdict if isinstance(verdict, ir.Value) else i32(verdict))

    # --- to the kernel -----------------------------------------------------------------------------------

    def compile(self) -> tuple[bytearray, list[tuple[int, str]]]:
        """Machine code, and where which map's file descriptor belongs: (byte offset, map name)."""
        return _section(_emit_object(str(self.module)), "program")

    @property
    def needs(self) -> dict[str, str]:
        """The helpers called so far, each with the Linux version that it needs."""
        return dict(self._needs)

    def load(self, maps: Mapping[str, Map] | None = None) -> LoadedProgram:
        """Compile, bind the maps and have the kernel verify it. Raises SteeringError with the verifier's log."""
        code, references = self.compile()
        for offset, name in references:
            # BPF_LD_IMM64 with src_reg = BPF_PSEUDO_MAP_FD (1): the immediate is a map's file descriptor.
            code[offset + 1] = code[offset + 1] & 0x0F | 1 << 4
            struct.pack_into("<i", code, offset + 4, (maps or {})[name].fd)
            struct.pack_into("<i", code, offset + 12, 0)
        return LoadedProgram(self.name, bytes(code), self._kind)


def _emit_object(text: str) -> bytes:
    """Optimise and translate a module: an ELF object file, in memory."""
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    try:
        target = llvm.Target.from_triple("bpfel")
    except RuntimeError as error:
        raise SteeringError(f"this build of llvmlite cannot emit BPF programs: {error}") from error
    # v3: 32-bit arithmetic and jumps (Linux 5.1).
    machine = target.create_target_machine(cpu="v3", opt=2)
    module = llvm.parse_assembly(text)
    module.verify()
    passes = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(speed_level=2))
    passes.getModulePassManager().run(module, passes)
    return bytes(machine.emit_object(module))


# ELF-64 (System V ABI, chapters 4 "Object Files" and 5): section types, and BPF's relocation for 64-bit immediates.
_SHT_SYMTAB, _SHT_REL, _R_BPF_64_64 = 2, 9, 1


def _section(elf: bytes, wanted: str) -> tuple[bytearray, list[tuple[int, str]]]:
    """The bytes of one section of an object file, and its relocations as (offset, symbol name)."""
    (table,) = struct.unpack_from("<Q", elf, 40)
    size, count, names_index = struct.unpack_from("<3H", elf, 58)
    # name, type, flags, address, offset, size, link, info, alignment, entry size
    headers = [struct.unpack_from("<2I4Q2I2Q", elf, table + index * size) for index in range(count)]

    def text(strings_index: int, offset: int) -> str:
        start = headers[strings_index][4] + offset
        return elf[start : elf.index(b"\0", start)].decode()

    names = [text(names_index, header[0]) for header in headers]
    symbols: list[str] = []
    for header in headers:
        if header[1] == _SHT_SYMTAB:
            for entry in range(header[4], header[4] + header[5], 24):
                symbols.append(text(header[6], struct.unpack_from("<I", elf, entry)[0]))
    code_index = names.index(wanted)
    code = bytearray(elf[headers[code_index][4] : headers[code_index][4] + headers[code_index][5]])
    references: list[tuple[int, str]] = []
    for header in headers:
        if header[1] == _SHT_REL and header[7] == code_index:
            for entry in range(header[4], header[4] + header[5], 16):
                offset, info = struct.unpack_from("<2Q", elf, entry)
                if info & 0xFFFFFFFF != _R_BPF_64_64:
                    raise SteeringError(f"unexpected relocation of type {info & 0xFFFFFFFF} in {wanted!r}")
                references.append((offset, symbols[info >> 32]))
    return code, references
