"""The system call bpf(2): maps, programs and links, each owned by an object that closes it.

No library stands between us and the kernel, because the few that exist want a C compiler on the node.  Only the
commands that steering needs are here.  Structures and numbers are those of `include/uapi/linux/bpf.h`
(`union bpf_attr`); the kernel accepts an attribute shorter than its own and takes the rest as zero, so each
command is packed only as far as it is used.  Every file descriptor that bpf(2) returns is close-on-exec.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from collections.abc import Iterable, Mapping
from enum import IntEnum
from typing import NamedTuple

from ..errors import SteeringError

__all__ = [
    "AttachType",
    "BpfObject",
    "Link",
    "LinkFlag",
    "LoadedProgram",
    "Map",
    "MapKind",
    "ProgramKind",
    "TestRun",
    "Verdict",
    "attached_programs",
    "put_socket",
]

# __NR_bpf: arch/x86/entry/syscalls/syscall_64.tbl, include/uapi/asm-generic/unistd.h, and the others' tables.
_NR_BPF = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "loongarch64": 280, "ppc64le": 361}

_libc = ctypes.CDLL(None, use_errno=True)


class _Command(IntEnum):
    """`enum bpf_cmd`."""

    MAP_CREATE = 0
    MAP_LOOKUP_ELEM = 1
    MAP_UPDATE_ELEM = 2
    PROG_LOAD = 5
    PROG_TEST_RUN = 10
    PROG_QUERY = 16
    MAP_UPDATE_BATCH = 26
    MAP_DELETE_BATCH = 27
    LINK_CREATE = 28
    LINK_UPDATE = 29


class MapKind(IntEnum):
    """`enum bpf_map_type`."""

    HASH = 1
    ARRAY = 2
    PERCPU_ARRAY = 6
    LRU_HASH = 9
    LPM_TRIE = 11
    ARRAY_OF_MAPS = 12
    XSKMAP = 17  # queue → AF_XDP socket


class AttachType(IntEnum):
    """`enum bpf_attach_type`: XDP, and TCX, the programs at an interface's ingress and egress (Linux 6.6)."""

    XDP = 37
    TCX_INGRESS = 46
    TCX_EGRESS = 47


class Verdict(IntEnum):
    """What a TCX program returns: `enum tcx_action_base`."""

    NEXT = -1  # not ours: the next program, then the kernel, go on with it
    PASS = 0
    DROP = 2
    REDIRECT = 7


class ProgramKind(IntEnum):
    """`enum bpf_prog_type`."""

    SCHED_CLS = 3
    XDP = 6


class LinkFlag(IntEnum):
    """Of XDP: in which mode (`include/uapi/linux/if_link.h`)."""

    NONE = 0
    XDP_GENERIC = 1 << 1  # XDP_FLAGS_SKB_MODE
    XDP_NATIVE = 1 << 2  # XDP_FLAGS_DRV_MODE


_F_BEFORE, _F_LINK = 1 << 3, 1 << 13  # of TCX: where among the others at this place


_F_XDP_HAS_FRAGS = 1 << 5  # the program does not mind packets of several pieces
_F_NO_PREALLOC = 1  # memory for the entries there are, not for all there could be; LPM tries insist on it
_F_MMAPABLE = 1 << 10  # Linux 5.5
_KINDS_WITHOUT_PREALLOC = (MapKind.HASH, MapKind.LPM_TRIE)
_LOG_SIZE = 1 << 20
_LICENSE = b"Dual MIT/GPL"  # some helpers are for GPL-compatible programs only
_NAME_LENGTH = 15  # BPF_OBJ_NAME_LEN less its final zero


def _bpf(command: _Command, attribute: bytes) -> tuple[int, bytes]:
    """Call bpf(2); returns its result and the attribute as the kernel left it. Raises OSError."""
    buffer = ctypes.create_string_buffer(attribute, len(attribute))
    return _bpf_in_place(command, buffer), buffer.raw


def _bpf_in_place(command: _Command, buffer: ctypes.Array[ctypes.c_char]) -> int:
    """The same over an attribute in memory, which the kernel also changes when it fails."""
    number = _NR_BPF.get(platform.machine())
    if number is None:
        raise SteeringError(f"bpf(2) has no known system call number on {platform.machine()}")
    result = _libc.syscall(number, ctypes.c_int(command), buffer, ctypes.c_uint(len(buffer)))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return int(result)


def _refused(what: str, error: OSError) -> SteeringError:
    """One line for the user: what was asked, what the kernel said, and what usually helps."""
    hint = {
        errno.EPERM: "; CAP_BPF and CAP_NET_ADMIN (or root) are needed",
        errno.E2BIG: "; the map is full",
        errno.ENOSYS: "; this kernel has no bpf(2)",
    }.get(error.errno or 0, "")
    return SteeringError(f"{what}: {error.strerror}{hint}")


class BpfObject:
    """A file descriptor of bpf(2) and its owner: closing it gives the kernel's object back."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    @property
    def fd(self) -> int:
        if self._fd < 0:
            raise SteeringError(f"{type(self).__name__} is closed")
        return self._fd

    def close(self) -> None:
        """Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __del__(self) -> None:
        if getattr(self, "_fd", -1) >= 0:
            self.close()


class Map(BpfObject):
    """A BPF map with keys and values of fixed size, as bytes."""

    def __init__(
        self,
        kind: MapKind,
        name: str,
        key_size: int,
        value_size: int,
        capacity: int,
        *,
        fixed: bool = False,
        mapped: bool = False,
        inner: Map | None = None,
    ) -> None:
        """`fixed`: a hash map's memory is taken at once, so that it is full at its capacity and never before.

        `mapped`: an array can be mapped with mmap(2). `inner`: what the maps in a map of maps are like.
        """
        flags = _F_NO_PREALLOC if kind in _KINDS_WITHOUT_PREALLOC and not fixed else 0
        flags |= _F_MMAPABLE if mapped else 0
        inner_fd = 0 if inner is None else inner.fd
        attribute = struct.pack(
            "=7I16s", kind, key_size, value_size, capacity, flags, inner_fd, 0, name.encode()[:_NAME_LENGTH]
        )
        try:
            fd, _ = _bpf(_Command.MAP_CREATE, attribute)
        except OSError as error:
            raise _refused(f"BPF map {name!r} of {capacity} entries", error) from error
        super().__init__(fd)
        self.kind, self.name = kind, name
        self.key_size, self.value_size, self.capacity = key_size, value_size, capacity

    @classmethod
    def adopt(
        cls, fd: int, kind: MapKind, name: str, key_size: int, value_size: int, capacity: int
    ) -> Map:
        """A map that another process has made, and handed over."""
        adopted = cls.__new__(cls)
        BpfObject.__init__(adopted, fd)
        adopted.kind, adopted.name = kind, name
        adopted.key_size, adopted.value_size, adopted.capacity = key_size, value_size, capacity
        return adopted

    def write(self, keys: bytes, values: bytes, count: int) -> None:
        """`update` for entries that lie one after the other. Raises SteeringError when the map is full."""
        self._batch(_Command.MAP_UPDATE_BATCH, keys, values, count)

    def erase(self, keys: bytes) -> int:
        """`delete` for keys that lie one after the other; those that are not there do no harm.

        Returns how many were there.
        """
        erased, position, count = 0, 0, len(keys) // self.key_size
        key_buffer = ctypes.create_string_buffer(keys, max(len(keys), 1))
        while position < count:
            start = ctypes.addressof(key_buffer) + position * self.key_size
            attribute = struct.pack("=4Q2I2Q", 0, 0, start, 0, count - position, self.fd, 0, 0)
            buffer = ctypes.create_string_buffer(attribute, len(attribute))
            try:
                _bpf_in_place(_Command.MAP_DELETE_BATCH, buffer)
            except OSError as error:
                if error.errno != errno.ENOENT:
                    raise _refused(f"deletion of entries in BPF map {self.name!r}", error) from error
            (done,) = struct.unpack_from("=I", buffer, 32)
            erased += done
            position += done + 1  # the one behind them was not there, or there is none
        return erased

    def update(self, entries: Mapping[bytes, bytes]) -> None:
        """Write many entries with one system call. Raises SteeringError when the map is full."""
        keys = self._joined(entries.keys(), self.key_size, "key")
        values = self._joined(entries.values(), self.value_size, "value")
        self._batch(_Command.MAP_UPDATE_BATCH, keys, values, len(entries))

    def delete(self, keys: Iterable[bytes]) -> None:
        """Delete many entries with one system call. Raises SteeringError when one is not there."""
        keys = list(keys)
        self._batch(_Command.MAP_DELETE_BATCH, self._joined(keys, self.key_size, "key"), b"", len(keys))

    def lookup(self, key: bytes) -> bytes | None:
        """The value, or None. Of a per-CPU map: the values of all possible CPUs, one after the other."""
        size = self.value_size
        if self.kind == MapKind.PERCPU_ARRAY:
            size = -(-size // 8) * 8 * possible_cpus()  # bpf_percpu_array_copy(): each rounded up to 8 bytes
        key_buffer = ctypes.create_string_buffer(self._joined([key], self.key_size, "key"), self.key_size)
        value_buffer = ctypes.create_string_buffer(size)
        attribute = struct.pack(
            "=I4x3Q", self.fd, ctypes.addressof(key_buffer), ctypes.addressof(value_buffer), 0
        )
        try:
            _bpf(_Command.MAP_LOOKUP_ELEM, attribute)
        except OSError as error:
            if error.errno == errno.ENOENT:
                return None
            raise _refused(f"lookup in BPF map {self.name!r}", error) from error
        return value_buffer.raw

    def _batch(self, command: _Command, keys: bytes, values: bytes, count: int) -> None:
        if count == 0:
            return
        key_buffer = ctypes.create_string_buffer(keys, len(keys))
        value_buffer = ctypes.create_string_buffer(values, max(len(values), 1))
        # in_batch, out_batch, keys, values, count, map_fd, elem_flags, flags
        attribute = struct.pack(
            "=4Q2I2Q",
            0,
            0,
            ctypes.addressof(key_buffer),
            ctypes.addressof(value_buffer),
            count,
            self.fd,
            0,
            0,
        )
        try:
            _bpf(command, attribute)
        except OSError as error:
            verb = "update" if command == _Command.MAP_UPDATE_BATCH else "deletion"
            what = f"{verb} of {count} entries in BPF map {self.name!r} ({self.capacity} entries)"
            raise _refused(what, error) from error

    def _joined(self, parts: Iterable[bytes], size: int, what: str) -> bytes:
        parts = list(parts)
        if not {size}.issuperset(map(len, parts)):
            raise ValueError(f"a {what} of BPF map {self.name!r} has {size} bytes")
        return b"".join(parts)


def put_socket(map_fd: int, queue: int, socket_fd: int) -> None:
    """Make an AF_XDP socket the one of its queue, in a map of kind XSKMAP that this process only has as a descriptor.

    The kernel takes the entry out when the socket is closed.  (There are no batches for maps of sockets.)
    """
    key, value = (ctypes.create_string_buffer(struct.pack("=I", each), 4) for each in (queue, socket_fd))
    attribute = struct.pack("=I4x3Q", map_fd, ctypes.addressof(key), ctypes.addressof(value), 0)
    try:
        _bpf(_Command.MAP_UPDATE_ELEM, attribute)
    except OSError as error:
        raise _refused(f"AF_XDP socket for queue {queue}", error) from error


class TestRun(NamedTuple):
    """What a program made of a packet."""

    verdict: int  # signed, as TCX verdicts are
    frame: bytes
    duration_ns: int


class LoadedProgram(BpfObject):
    """A program that the verifier has accepted."""

    def __init__(self, name: str, code: bytes, kind: ProgramKind = ProgramKind.SCHED_CLS) -> None:
        instructions = ctypes.create_string_buffer(code, len(code))
        licence = ctypes.create_string_buffer(_LICENSE)
        log = ctypes.create_string_buffer(_LOG_SIZE)

        def load(log_level: int) -> int:
            # prog_type, insn_cnt, insns, license, log_level, log_size, log_buf, kern_version, prog_flags, prog_name
            attribute = struct.pack(
                "=2I2Q2IQ2I16s",
                kind,
                len(code) // 8,
                ctypes.addressof(instructions),
                ctypes.addressof(licence),
                log_level,
                _LOG_SIZE if log_level else 0,
                ctypes.addressof(log) if log_level else 0,
                0,
                _F_XDP_HAS_FRAGS if kind == ProgramKind.XDP else 0,
                name.encode()[:_NAME_LENGTH],
            )
            return _bpf(_Command.PROG_LOAD, attribute)[0]

        try:
            fd = load(0)
        except OSError as first:
            if first.errno == errno.EPERM:
                raise _refused(f"BPF program {name!r}", first) from first
            try:  # once more, to hear why
                fd = load(1)
            except OSError as error:
                refusal = _refused(f"BPF program {name!r}", error)
                last_lines = log.value.decode(errors="replace")[-4000:]
                raise SteeringError(f"{refusal}\n{last_lines}".rstrip()) from error
        super().__init__(fd)
        self.name = name

    def test_run(
        self,
        frame: bytes,
        ifindex: int = 0,
        ingress_ifindex: int = 0,
        mark: int = 0,
        repeat: int = 1,
        gso_size: int = 0,
    ) -> TestRun:
        """Run the program over one Ethernet frame without sending anything (`net/bpf/test_run.c`).

        `ifindex` 0 means the loopback interface of this namespace: a frame for its address 00:00:00:00:00:00 is
        PACKET_HOST.  Raises SteeringError for frames that the kernel does not accept for a test.
        """
        source = ctypes.create_string_buffer(frame, len(frame))
        target = ctypes.create_string_buffer(len(frame) + 256)
        context = bytearray(192)  # struct __sk_buff
        struct.pack_into("=I", context, 8, mark)
        struct.pack_into("=2I", context, 36, ingress_ifindex, ifindex)
        struct.pack_into("=I", context, 176, gso_size)
        context_buffer = ctypes.create_string_buffer(bytes(context), len(context))
        # prog_fd, retval, sizes in and out, data in and out, repeat, duration, context sizes and pointers
        attribute = struct.pack(
            "=4I2Q4I2Q",
            self.fd,
            0,
            len(frame),
            len(target),
            ctypes.addressof(source),
            ctypes.addressof(target),
            repeat,
            0,
            len(context),
            0,
            ctypes.addressof(context_buffer),
            0,
        )
        try:
            _, attribute = _bpf(_Command.PROG_TEST_RUN, attribute)
        except OSError as error:
            raise _refused(f"test run of BPF program {self.name!r} over {len(frame)} bytes", error) from error
        _, verdict, _, length, _, _, _, duration, *_ = struct.unpack("=Ii2I2Q4I2Q", attribute)
        return TestRun(verdict, target.raw[:length], duration)


class Link(BpfObject):
    """A program attached to an interface for as long as somebody holds this descriptor.

    The interface is looked up in the network namespace of the calling thread (`tcx_link_attach()`,
    `bpf_xdp_link_attach()`).
    """

    @classmethod
    def adopt(cls, fd: int, ifindex: int, where: AttachType) -> Link:
        """A link that another process has made, and handed over."""
        link = cls.__new__(cls)
        BpfObject.__init__(link, fd)
        link.ifindex, link.where = ifindex, where
        return link

    def update(self, program: LoadedProgram) -> None:
        """Put another program in the place of the attached one; every packet meets one of the two."""
        try:
            _bpf(_Command.LINK_UPDATE, struct.pack("=4I", self.fd, program.fd, 0, 0))
        except OSError as error:
            self.errno = error.errno
            raise _refused(f"BPF program {program.name!r} at interface {self.ifindex}", error) from error

    def __init__(
        self,
        program: LoadedProgram,
        ifindex: int,
        where: AttachType,
        flags: LinkFlag = LinkFlag.NONE,
        before: Link | None = None,
    ) -> None:
        """`before`: packets meet this program before that of another link at the same place (TCX alone)."""
        order, relative = (0, 0) if before is None else (_F_BEFORE | _F_LINK, before.fd)
        # prog_fd, target_ifindex, attach_type, flags, then struct tcx: relative_fd, pad, expected_revision
        attribute = struct.pack("=6IQ", program.fd, ifindex, where, flags | order, relative, 0, 0)
        try:
            fd, _ = _bpf(_Command.LINK_CREATE, attribute)
        except OSError as error:
            self.errno = error.errno
            raise _refused(f"BPF program {program.name!r} at interface {ifindex}", error) from error
        super().__init__(fd)
        self.ifindex, self.where = ifindex, where


def has_tcx(program: LoadedProgram) -> bool:
    """Whether this kernel knows TCX links, asked without attaching anything.

    No interface has the greatest index.  A kernel with TCX looks for it in vain (ENODEV); an older one does
    not know the attach type (EINVAL).
    """
    attribute = struct.pack("=6IQ", program.fd, 0x7FFFFFFF, AttachType.TCX_INGRESS, 0, 0, 0, 0)
    try:
        fd, _ = _bpf(_Command.LINK_CREATE, attribute)
    except OSError as error:
        if error.errno == errno.EPERM:
            raise _refused("BPF link", error) from error
        return error.errno == errno.ENODEV
    os.close(fd)
    return True


def attached_programs(ifindex: int, where: AttachType = AttachType.TCX_EGRESS) -> int:
    """How many programs stand at a place of an interface (TCX), whoever has put them there. Raises SteeringError."""
    # target_ifindex, attach_type, query_flags, attach_flags, prog_ids, count, and room for what else the kernel writes
    attribute = struct.pack("=4IQI36x", ifindex, where, 0, 0, 0, 0)
    try:
        _, attribute = _bpf(_Command.PROG_QUERY, attribute)
    except OSError as error:
        if error.errno in (errno.ENODEV, errno.ENOENT):  # gone, or there never was one
            return 0
        raise _refused(f"programs at interface {ifindex}", error) from error
    return int(struct.unpack_from("=I", attribute, 24)[0])


def possible_cpus() -> int:
    """How many CPUs the kernel may ever have: the number of values in a per-CPU map's entry."""
    with open("/sys/devices/system/cpu/possible", encoding="ascii") as file:
        ranges = file.read().strip().split(",")
    return sum(int(part.split("-")[-1]) - int(part.split("-")[0]) + 1 for part in ranges)
