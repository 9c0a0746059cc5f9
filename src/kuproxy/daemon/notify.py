"""News for whoever supervises the control process: its keeper, or the service manager itself (sd_notify(3))."""

import time

from kuproxy.keeper.notify import ServiceManager
from kuproxy.keeper.vault import Vault

__all__ = ["Notifier"]


class Notifier:
    """Tells how the control process stands."""

    def __init__(self, vault: Vault) -> None:
        self._vault = vault
        self._manager = ServiceManager()
        # How often it wants to hear that we live, in seconds; the keeper hears it at every turn.
        self.watchdog_s = None if vault.connected else self._manager.watchdog_s

    def _send(self, text: str) -> None:
        if self._vault.connected:
            self._vault.notify(text)
        else:
            self._manager.send(text)

    def ready(self) -> None:
        self._send("READY=1")

    def reloading(self) -> None:
        """Type=notify-reload wants the time with it, in microseconds of CLOCK_MONOTONIC."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        self._send("STOPPING=1")

    def extend(self, seconds: float) -> None:
        """A stop takes so much longer, from now on."""
        self._send(f"EXTEND_TIMEOUT_USEC={seconds * 1e6:.0f}")

    def alive(self) -> None:
        if self._vault.connected:
            self._vault.notify("WATCHDOG=1")
        elif self.watchdog_s is not None:
            self._manager.alive(time.monotonic())
