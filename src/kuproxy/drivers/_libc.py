"""The C library from compiled code: without the GIL, and cacheable, which ctypes pointers are not.

Only for the compiler; `now_ns` alone also works without it.
"""

import time
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from kuproxy.dataplane._jit import COMPILED, kernel

# Pointers travel as integers: `array.ctypes.data`.
poll = types.ExternalFunction("poll", types.int32(types.uintp, types.uint64, types.int32))
sendmmsg = types.ExternalFunction(
    "sendmmsg", types.int32(types.int32, types.uintp, types.uint32, types.int32)
)
sendto = types.ExternalFunction(
    "sendto",
    types.intp(types.int32, types.uintp, types.uintp, types.int32, types.uintp, types.uint32),
)
getsockopt = types.ExternalFunction(
    "getsockopt", types.int32(types.int32, types.int32, types.int32, types.uintp, types.uintp)
)

# asm-generic: the same on all machines we run on
EINTR, ENXIO, EAGAIN, EBUSY, ENODEV, ENOBUFS = 4, 6, 11, 16, 19, 105
MSG_DONTWAIT = 0x40
SOL_SOCKET, SO_ERROR = 1, 4
POLLIN, POLLOUT = 1, 4
CLOCK_MONOTONIC = 1

_I32, _I64 = ir.IntType(32), ir.IntType(64)


@intrinsic  # type: ignore[misc]
def errno(typingctx: Any) -> Any:
    """The thread's errno, right after a call that failed."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        location = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(_I32.as_pointer(), []), "__errno_location"
        )
        return builder.sext(builder.load(builder.call(location, [])), _I64)

    return types.int64(), codegen


@intrinsic  # type: ignore[misc]
def _clock_ns(typingctx: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        timespec = cgutils.alloca_once(builder, ir.ArrayType(_I64, 2))
        function = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(_I32, [_I32, timespec.type]), "clock_gettime"
        )
        builder.call(function, [_I32(CLOCK_MONOTONIC), timespec])
        seconds = builder.load(cgutils.gep_inbounds(builder, timespec, 0, 0))
        return builder.add(
            builder.mul(seconds, _I64(1_000_000_000)),
            builder.load(cgutils.gep_inbounds(builder, timespec, 0, 1)),
        )

    return types.int64(), codegen


if COMPILED:

    @kernel
    def now_ns():
        """CLOCK_MONOTONIC in nanoseconds."""
        return _clock_ns()

else:
    now_ns = time.monotonic_ns


@kernel
def poll_one(pollfd, fd, events, timeout_ms):
    """poll(2) on one descriptor. Returns the events that came, 0 after the timeout or a signal.

    `pollfd` is uint32[2], room for struct pollfd.
    """
    pollfd[0] = fd
    pollfd[1] = events
    if poll(pollfd.ctypes.data, np.uint64(1), np.int32(timeout_ms)) <= 0:
        return np.int64(0)
    return np.int64(pollfd[1]) >> 16
