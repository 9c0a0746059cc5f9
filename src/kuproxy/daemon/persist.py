"""The state file: what was configured by commands survives a crash at any byte.

A change is written beside the file and flushed (`prepare`) before the data plane takes it over, and renamed into
place afterwards (`commit`).  The state before stays beside it as `state.json.old`.  A checksum tells a damaged file
from a good one; a damaged file is renamed, never deleted, and the last good one is used.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import itertools
import os
from dataclasses import dataclass
from pathlib import Path

import msgspec

from kuproxy.daemon.schema import STATE_VERSION, State
from kuproxy.errors import KuError

__all__ = ["Loaded", "StateFile", "StateFileError"]

NAME = "state.json"


class StateFileError(KuError):
    """The state cannot be kept; the message names the file and the reason."""


class _Envelope(msgspec.Struct, forbid_unknown_fields=True):
    """`state` is kept as the very bytes that `sha256` is the digest of."""

    format: int
    sha256: str
    state: msgspec.Raw


@dataclass(frozen=True, slots=True)
class Loaded:
    """What was found, and one line for everything that was wrong with it."""

    state: State
    warnings: tuple[str, ...] = ()


def _decode(data: bytes) -> State:
    """Raises ValueError with the reason."""
    envelope = msgspec.json.decode(data, type=_Envelope)
    if envelope.format != STATE_VERSION:
        raise ValueError(f"has format {envelope.format}, this version reads format {STATE_VERSION}")
    if hashlib.sha256(bytes(envelope.state)).hexdigest() != envelope.sha256:
        raise ValueError("its checksum is wrong")
    return msgspec.json.decode(bytes(envelope.state), type=State)


def encode(state: State) -> bytes:
    """The content of a state file."""
    raw = msgspec.json.encode(state)
    digest = hashlib.sha256(raw).hexdigest()
    return msgspec.json.encode(_Envelope(STATE_VERSION, digest, msgspec.Raw(raw))) + b"\n"


class StateFile:
    """One state directory, which no second daemon may use at the same time."""

    def __init__(self, directory: Path) -> None:
        """Raises StateFileError."""
        self.path = directory / NAME
        self._old = self.path.with_name(f"{NAME}.old")
        self._new = self.path.with_name(f"{NAME}.new")
        try:
            directory.mkdir(mode=0o750, parents=True, exist_ok=True)
            self._directory = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise StateFileError(f"state directory {directory}: {error.strerror}") from None
        try:
            fcntl.flock(self._directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._directory)
            raise StateFileError(
                f"state directory {directory} is in use by another daemon; give each its own"
            ) from None

    def load(self) -> Loaded:
        """The state of the last commit; the one before it if the file is damaged; else the empty one.

        Raises StateFileError if a file is there and cannot be read at all.
        """
        warnings: list[str] = []
        self._new.unlink(missing_ok=True)
        for path in (self.path, self._old):
            try:
                return Loaded(_decode(path.read_bytes()), tuple(warnings))
            except FileNotFoundError:
                continue
            except OSError as error:
                raise StateFileError(f"{path}: {error.strerror}") from None
            except ValueError as error:
                aside = self._set_aside(path)
                warnings.append(f"{path} is damaged ({error}), set aside as {aside.name}")
        if warnings:
            warnings.append("no good state is left: starting without any")
        return Loaded(State(), tuple(warnings))

    def _set_aside(self, path: Path) -> Path:
        for number in itertools.count(1):
            aside = path.with_name(f"{path.name}.damaged-{number}")
            if not aside.exists():
                path.rename(aside)
                os.fsync(self._directory)
                return aside
        raise AssertionError

    def keep_copy(self, why: str) -> Path:
        """A copy of the present file as `state.json.WHY-N`, before something of it is given up."""
        for number in itertools.count(1):
            copy = self.path.with_name(f"{NAME}.{why}-{number}")
            with contextlib.suppress(FileExistsError):
                os.link(self.path if self.path.exists() else self._old, copy)
                return copy
        raise AssertionError

    def prepare(self, state: State) -> None:
        """Write the state beside the file, flushed.  Raises StateFileError; then the former state stays."""
        data = encode(state)
        try:
            fd = os.open(self._new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o640)
            try:
                view = memoryview(data)
                while view:
                    view = view[os.write(fd, view) :]
                os.fsync(fd)
            finally:
                os.close(fd)
        except OSError as error:
            self.discard()
            raise StateFileError(f"{self._new}: {error.strerror}; nothing was changed") from None

    def commit(self) -> None:
        """Let the prepared state be the state.  Raises StateFileError."""
        try:
            # A second name for the present file first: at no moment is there neither.
            with contextlib.suppress(FileNotFoundError):
                link = self.path.with_name(f"{NAME}.link")
                link.unlink(missing_ok=True)
                os.link(self.path, link)
                link.rename(self._old)
            self._new.rename(self.path)
            os.fsync(self._directory)
        except OSError as error:
            raise StateFileError(f"{self.path}: {error.strerror}") from None

    def discard(self) -> None:
        """Forget the prepared state."""
        with contextlib.suppress(OSError):
            self._new.unlink(missing_ok=True)

    def close(self) -> None:
        """Let another daemon have the directory."""
        os.close(self._directory)
