"""What the drivers for live traffic have in common around their kernels: `contract.Driver`, errors, counts."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, NamedTuple, Protocol, Self

from kuproxy.dataplane._jit import COMPILED
from kuproxy.dataplane.layout import Frame
from kuproxy.drivers.contract import BROKEN, READY
from kuproxy.errors import DriverError

__all__ = ["Kernels", "LiveDriver", "checked_macs"]


class Kernels(NamedTuple):
    """The four of `contract`, as the module of the driver defines them."""

    receive: Callable[[Any, Frame], int]
    transmit: Callable[[Any, Frame], tuple[int, int]]
    wait: Callable[[Any, int], int]
    kernel_drops: Callable[[Any], int]


class Sockets(Protocol):
    """What a driver's sockets know of their interface."""

    interface: str

    def errors(self) -> int:
        """Read and clear pending errors; returns one of them, 0 if there was none."""

    def gone(self) -> bool:
        """Whether the interface was removed."""

    def close(self) -> None: ...


def checked_macs(driver: str, destination: bytes | None, source: bytes | None) -> bytes | None:
    """Both addresses as they lie in a packet, or None.  Raises DriverError, also without a compiler."""
    if not COMPILED:
        raise DriverError(f"{driver} needs the compiler: unset NUMBA_DISABLE_JIT")
    if (destination is None) != (source is None):
        raise DriverError("set both MAC addresses or none")
    if destination is None:
        return None
    macs = bytes(destination) + bytes(source or b"")
    if len(macs) != 12:
        raise DriverError("a MAC address has 6 bytes")
    return macs


class LiveDriver(ABC):
    """Owns the sockets and wraps the kernels; a subclass makes `ring` and hands over the rest."""

    kernels: Kernels
    counts: Mapping[str, int]  # name of a statistic → its word in ring.stats
    drops_word: int  # where kernel_drops keeps its result

    ring: Any
    frame: Frame

    def __init__(self, sockets: Sockets, frame: Frame) -> None:
        self.interfaces = (sockets.interface,)
        self.frame = frame
        self._opened = sockets
        self._closed = False

    @abstractmethod
    def _forget_sockets(self) -> None:
        """Take the descriptors out of `ring`: the numbers may soon be another file's."""

    @abstractmethod
    def count_on(self, dropped: int) -> None:
        """Let `kernel_drops` go on from what was dropped at the sockets of a driver before."""

    @property
    def finished(self) -> bool:
        return self._closed

    def receive(self, frame: Frame) -> int:
        return 0 if self._closed else int(self.kernels.receive(self.ring, frame))

    def transmit(self, frame: Frame) -> tuple[int, int]:
        return (0, 0) if self._closed else self.kernels.transmit(self.ring, frame)

    def wait(self, timeout_ms: int) -> bool:
        """Sleep until a packet comes; False after `timeout_ms`. DriverError when the interface is gone."""
        result = BROKEN if self._closed else self.kernels.wait(self.ring, timeout_ms)
        if result == BROKEN:
            self.check()
        return result == READY

    def check(self) -> None:
        """Clear the sockets' errors. Raises DriverError if the interface was removed, or the driver closed.

        An interface that is merely down is no error: it may come up again.
        """
        if self._closed:
            raise DriverError(f"interface {self.interfaces[0]}: the driver is closed")
        self._opened.errors()
        if self._opened.gone():
            raise DriverError(f"interface {self.interfaces[0]} was removed")

    def statistics(self) -> dict[str, int]:
        """Counts since the driver was opened; `kernel_drops` is read from the socket now."""
        counts = {name: int(self.ring.stats[word]) for name, word in self.counts.items()}
        drops = self.ring.stats[self.drops_word] if self._closed else self.kernels.kernel_drops(self.ring)
        return counts | {"kernel_drops": int(drops)}

    def close(self) -> None:
        """Give up sockets and ring. No kernel may be running on `ring` then, nor be called with it again."""
        if not self._closed:
            self._closed = True
            self._forget_sockets()
            self._opened.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
