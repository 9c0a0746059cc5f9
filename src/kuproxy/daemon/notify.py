"""What systemd wants to hear (sd_notify(3)): datagrams on the socket that it names, nothing without one."""

import os
import socket
import time

__all__ = ["Notifier"]

PATIENCE_S = 0.5  # with a manager whose queue is full: everybody else waits meanwhile


class Notifier:
    """Tells the service manager how it stands."""

    def __init__(self) -> None:
        self._address = os.environ.get("NOTIFY_SOCKET", "")
        if self._address.startswith("@"):
            self._address = f"\0{self._address[1:]}"
        usec = os.environ.get("WATCHDOG_USEC", "")
        own = os.environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        # Half of the time that it grants, as sd_watchdog_enabled(3) recommends; None: it does not watch.
        self.watchdog_s = int(usec) / 2e6 if usec.isdecimal() and int(usec) and own else None

    def _send(self, text: str, patience_s: float = PATIENCE_S) -> None:
        if not self._address:
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as opened:
            opened.settimeout(patience_s)
            try:
                opened.connect(self._address)
                opened.send(text.encode())
            except OSError:
                return  # nobody listens, or reads, any more: no reason to end

    def ready(self) -> None:
        self._send("READY=1")

    def reloading(self) -> None:
        """Type=notify-reload wants the time with it, in microseconds of CLOCK_MONOTONIC."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        self._send("STOPPING=1")

    def alive(self) -> None:
        """A queue that is full of these needs no other."""
        self._send("WATCHDOG=1", 0.0)
