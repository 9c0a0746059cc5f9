"""Unaligned and atomic access to byte buffers, prefetch, CRC32C: what NumPy indexing cannot say.

Three flavours with one meaning, chosen when the module is imported:

- compiled: LLVM loads and stores straight into the array's memory;
- compiled and bounds-checked: the first and last byte are touched by a checked index before;
- compiler off: plain Python on the same arrays.

Sixteen- and 32-bit values travel as signed 64-bit integers (zero-extended), so that arithmetic on them needs no
casts and means the same with the compiler on and off; only 64-bit words are `uint64`.
Loads and stores are little-endian as the machine is; `swap16` and its sisters convert network byte order.
"""

import platform
import sys
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.arrayobj import make_array

from kuproxy.dataplane._jit import BOUNDS_CHECKED, COMPILED, kernel

if sys.byteorder != "little":
    raise ImportError("kuproxy runs on little-endian machines only")

HARDWARE_CRC = platform.machine() in ("x86_64", "AMD64")

_I64 = ir.IntType(64)


def _pointer(context: Any, builder: Any, array_type: Any, array: Any, index: Any, bits: int) -> Any:
    data = make_array(array_type)(context, builder, value=array).data
    return builder.bitcast(builder.gep(data, [index]), ir.IntType(bits).as_pointer())


def _make_load(bits: int, atomic: bool = False) -> Any:
    result = types.uint64 if bits == 64 else types.int64

    @intrinsic  # type: ignore[misc]
    def load(typingctx: Any, array: Any, index: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            pointer = _pointer(context, builder, signature.args[0], args[0], args[1], bits)
            if atomic:
                value = builder.load_atomic(pointer, "acquire", bits // 8)
            else:
                value = builder.load(pointer, align=1)
            return value if bits == 64 else builder.zext(value, _I64)

        return result(array, types.intp), codegen

    return load


def _make_store(bits: int, atomic: bool = False) -> Any:
    source = types.uint64 if bits == 64 else types.int64

    @intrinsic  # type: ignore[misc]
    def store(typingctx: Any, array: Any, index: Any, value: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            pointer = _pointer(context, builder, signature.args[0], args[0], args[1], bits)
            narrow = args[2] if bits == 64 else builder.trunc(args[2], ir.IntType(bits))
            if atomic:
                builder.store_atomic(narrow, pointer, "release", bits // 8)
            else:
                builder.store(narrow, pointer, align=1)
            return context.get_dummy_value()

        return types.void(array, types.intp, source), codegen

    return store


def _make_swap(bits: int) -> Any:
    number = types.uint64 if bits == 64 else types.int64

    @intrinsic  # type: ignore[misc]
    def swap(typingctx: Any, value: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            if bits == 64:
                return builder.bswap(args[0])
            return builder.zext(builder.bswap(builder.trunc(args[0], ir.IntType(bits))), _I64)

        return number(number), codegen

    return swap


@intrinsic  # type: ignore[misc]
def _prefetch(typingctx: Any, array: Any, index: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = make_array(signature.args[0])(context, builder, value=args[0]).data
        byte = ir.IntType(8).as_pointer()
        i32 = ir.IntType(32)
        function = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(ir.VoidType(), [byte, i32, i32, i32]), "llvm.prefetch.p0"
        )
        pointer = builder.bitcast(builder.gep(data, [args[1]]), byte)
        builder.call(function, [pointer, i32(0), i32(3), i32(1)])
        return context.get_dummy_value()

    return types.void(array, types.intp), codegen


@intrinsic  # type: ignore[misc]
def _crc32c_hardware(typingctx: Any, crc: Any, word: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        function = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(_I64, [_I64, _I64]), "llvm.x86.sse42.crc32.64.64"
        )
        return builder.call(function, args)

    return types.uint64(types.uint64, types.uint64), codegen


@intrinsic  # type: ignore[misc]
def _compare_and_swap64(typingctx: Any, array: Any, index: Any, old: Any, new: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = _pointer(context, builder, signature.args[0], args[0], args[1], 64)
        outcome = builder.cmpxchg(pointer, args[2], args[3], "acq_rel", "acquire")
        return builder.extract_value(outcome, 1)

    return types.boolean(array, types.intp, types.uint64, types.uint64), codegen


@intrinsic  # type: ignore[misc]
def _add64(typingctx: Any, one: Any, other: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.add(*args)

    return types.uint64(types.uint64, types.uint64), codegen


@intrinsic  # type: ignore[misc]
def _leading_zeros(typingctx: Any, value: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.ctlz(args[0], ir.IntType(1)(0))

    return types.int64(types.uint64), codegen


@intrinsic  # type: ignore[misc]
def _fence(typingctx: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), codegen


def _crc_table() -> np.ndarray:
    table = np.zeros(256, dtype=np.uint32)
    for byte in range(256):
        crc = byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)  # Castagnoli, reflected
        table[byte] = crc
    return table


_CRC_TABLE = _crc_table()


@kernel
def _crc32c_table(crc, word):
    """One 64-bit word, little-endian, through the byte table: for machines without the instruction."""
    state = np.uint32(crc)
    for shift in range(0, 64, 8):
        byte = np.uint32(word >> np.uint64(shift)) & np.uint32(0xFF)
        state = _CRC_TABLE[(state ^ byte) & np.uint32(0xFF)] ^ (state >> np.uint32(8))
    return np.uint64(state)


if not COMPILED:

    def _py_load(size: int) -> Any:
        def load(array: np.ndarray, index: int) -> int:
            if index < 0 or index * array.itemsize + size > array.nbytes:
                raise IndexError(f"load of {size} bytes at {index} of {array.shape}")
            if array.itemsize != 1:
                return array[index]
            value = int.from_bytes(array[index : index + size].tobytes(), "little")
            return np.uint64(value) if size == 8 else value

        return load

    def _py_store(size: int) -> Any:
        def store(array: np.ndarray, index: int, value: int) -> None:
            if index < 0 or index * array.itemsize + size > array.nbytes:
                raise IndexError(f"store of {size} bytes at {index} of {array.shape}")
            if array.itemsize != 1:
                array[index] = value
                return
            raw = (int(value) & ((1 << 8 * size) - 1)).to_bytes(size, "little")
            array[index : index + size] = np.frombuffer(raw, np.uint8)

        return store

    def _py_swap(size: int) -> Any:
        def swap(value: int) -> int:
            raw = (int(value) & ((1 << 8 * size) - 1)).to_bytes(size, "little")
            swapped = int.from_bytes(raw, "big")
            return np.uint64(swapped) if size == 8 else swapped

        return swap

    load8, load16, load32, load64 = _py_load(1), _py_load(2), _py_load(4), _py_load(8)
    store16, store32, store64 = _py_store(2), _py_store(4), _py_store(8)
    acquire32, acquire64, release32, release64 = load32, load64, store32, store64
    swap16, swap32, swap64 = _py_swap(2), _py_swap(4), _py_swap(8)

    def prefetch(array: np.ndarray, index: int) -> None:
        """Nothing to do in plain Python."""

    def crc32c(crc: np.uint64, word: np.uint64) -> np.uint64:
        state, word = int(crc), int(word)
        for shift in range(0, 64, 8):
            state = int(_CRC_TABLE[(state ^ (word >> shift)) & 0xFF]) ^ (state >> 8)
        return np.uint64(state)

    def compare_and_swap64(array: np.ndarray, index: int, old: np.uint64, new: np.uint64) -> bool:
        """Plain Python can make no promise to other processes."""
        if acquire64(array, index) != old:
            return False
        release64(array, index, new)
        return True

    def add64(one: np.uint64, other: np.uint64) -> np.uint64:
        """Modulo 2^64, which NumPy would warn of."""
        return np.uint64((int(one) + int(other)) & 0xFFFFFFFFFFFFFFFF)

    def leading_zeros(value: np.uint64) -> int:
        return 64 - int(value).bit_length()

    def fence() -> None:
        """Plain Python runs in order."""

elif BOUNDS_CHECKED:
    # The touched bytes make Numba's own check raise IndexError; unsigned indices keep negative ones from wrapping.
    def _checked_load(raw: Any, size: int) -> Any:
        last = np.uint64(size - 1)

        @kernel
        def load(array, index):
            if array.itemsize == 1:
                _ = array[np.uint64(index)]
                _ = array[np.uint64(index) + last]
            else:
                _ = array[np.uint64(index)]
            return raw(array, index)

        return load

    def _checked_store(raw: Any, size: int) -> Any:
        last = np.uint64(size - 1)

        @kernel
        def store(array, index, value):
            if array.itemsize == 1:
                array[np.uint64(index)] = array[np.uint64(index)]
                array[np.uint64(index) + last] = array[np.uint64(index) + last]
            else:
                array[np.uint64(index)] = array[np.uint64(index)]
            raw(array, index, value)

        return store

    @kernel
    def compare_and_swap64(array, index, old, new):
        _ = array[np.uint64(index)]
        return _compare_and_swap64(array, index, old, new)

    load8, load16, load32, load64 = (_checked_load(_make_load(bits), bits // 8) for bits in (8, 16, 32, 64))
    store16, store32, store64 = (_checked_store(_make_store(bits), bits // 8) for bits in (16, 32, 64))
    acquire32, acquire64 = (_checked_load(_make_load(bits, True), bits // 8) for bits in (32, 64))
    release32, release64 = (_checked_store(_make_store(bits, True), bits // 8) for bits in (32, 64))
    swap16, swap32, swap64 = (_make_swap(bits) for bits in (16, 32, 64))
    prefetch = _prefetch
    add64 = _add64
    leading_zeros = _leading_zeros
    crc32c = _crc32c_hardware if HARDWARE_CRC else _crc32c_table
    fence = _fence

else:
    load8, load16, load32, load64 = (_make_load(bits) for bits in (8, 16, 32, 64))
    store16, store32, store64 = (_make_store(bits) for bits in (16, 32, 64))
    acquire32, acquire64 = (_make_load(bits, True) for bits in (32, 64))
    release32, release64 = (_make_store(bits, True) for bits in (32, 64))
    compare_and_swap64 = _compare_and_swap64
    swap16, swap32, swap64 = (_make_swap(bits) for bits in (16, 32, 64))
    prefetch = _prefetch
    add64 = _add64
    leading_zeros = _leading_zeros
    crc32c = _crc32c_hardware if HARDWARE_CRC else _crc32c_table
    fence = _fence


@kernel
def crc32c_byte(crc, byte):
    """One byte (int64) more into a CRC32C state (uint64); for what is left behind the last whole word."""
    state = np.int64(crc)
    return np.uint64(np.int64(_CRC_TABLE[(state ^ byte) & 0xFF]) ^ (state >> 8))


@kernel
def copy_bytes(target, at, source, start, length):
    """target[at:at + length] = source[start:start + length] (uint8 arrays); the ranges must not overlap."""
    whole = length & ~7
    for offset in range(0, whole, 8):
        store64(target, at + offset, load64(source, start + offset))
    for offset in range(whole, length):
        target[at + offset] = source[start + offset]


@kernel
def clear_bytes(data, start, length):
    """data[start:start + length] = 0"""
    for offset in range(start, start + length):
        data[offset] = 0
