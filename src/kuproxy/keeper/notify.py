"""What systemd wants to hear (sd_notify(3)): datagrams on the socket that it names, nothing without one."""

from __future__ import annotations

import os
import socket

__all__ = ["ServiceManager"]


class ServiceManager:
    """Tells the service manager how it stands."""

    def __init__(self) -> None:
        self._address = os.environ.get("NOTIFY_SOCKET", "")
        if self._address.startswith("@"):
            self._address = f"\0{self._address[1:]}"
        usec = os.environ.get("WATCHDOG_USEC", "")
        own = os.environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        # Half of the time that it grants, as sd_watchdog_enabled(3) recommends; None: it does not watch.
        self.watchdog_s = int(usec) / 2e6 if usec.isdecimal() and int(usec) and own else None
        self._alive_at = 0.0

    def send(self, text: str, wait_s: float = 1.0) -> None:
        """A manager that does not read (its queue holds a few datagrams) must not keep us waiting for ever."""
        if not self._address:
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as opened:
            opened.settimeout(wait_s)
            try:
                opened.connect(self._address)
                opened.send(text.encode())
            except OSError:
                return  # nobody listens any more: no reason to end

    def alive(self, now: float) -> None:
        """Call it often; `now` is monotonic."""
        if self.watchdog_s is not None and now - self._alive_at >= self.watchdog_s:
            self._alive_at = now
            self.send("WATCHDOG=1", wait_s=0)  # a queue full of them says as much
