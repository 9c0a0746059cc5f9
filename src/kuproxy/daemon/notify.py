"""What systemd wants to hear (sd_notify(3)): datagrams on the socket that it names, nothing without one."""

import os
import socket
import time

__all__ = ["Notifier"]


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

    def _send(self, text: str, wait_s: float = 1.0) -> None:
        """A manager that does not read (its queue holds a few datagrams) must not keep the daemon waiting for ever."""
        if not self._address:
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as opened:
            opened.settimeout(wait_s)
            try:
                opened.connect(self._address)
                opened.send(text.encode())
            except OSError:
                return  # nobody listens (any more, or now): no reason to end

    def ready(self) -> None:
        self._send("READY=1")

    def reloading(self) -> None:
        """Type=notify-reload wants the time with it, in microseconds of CLOCK_MONOTONIC."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        self._send("STOPPING=1")

    def alive(self) -> None:
        self._send("WATCHDOG=1", wait_s=0)  # a queue full of them says as much
