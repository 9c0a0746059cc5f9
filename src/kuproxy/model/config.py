"""What configuration comes down to once every file has been read: VIPs, settings, interfaces.

The reading itself is done elsewhere (`kuproxy.load`), because nothing in this package touches a file.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass

from kuproxy.errors import ConfigError, Problem
from kuproxy.model.vip import Address, Vip, is_power_of_two

__all__ = ["MAX_BUCKETS", "MAX_TIMEOUT_S", "MAX_TRACED", "Config", "InterfaceMark", "Settings", "Show", "ShowKind"]

MAX_BUCKETS = 1 << 24  # of 4 entries and one 64-byte line each: 1 GiB per worker
MAX_TRACED = 1000  # packets at once that a worker's trace ring holds with all their nodes
MAX_TIMEOUT_S = 1_000_000.0  # 11.6 days: below half the period of a 32-bit clock in milliseconds, 24.8 days


@dataclass(frozen=True, slots=True)
class Settings:
    """`ku conf`: the established-flow table of each worker.  Raises ConfigError with every problem."""

    buckets: int = 1024  # VPP's default; four flows each
    timeout_s: float = 40.0  # VPP's default: how long a flow without packets is remembered
    ip4_src_address: Address | None = None  # outer source of tunnels to IPv4 pods
    ip6_src_address: Address | None = None

    def __post_init__(self) -> None:
        problems = []
        if not (is_power_of_two(self.buckets) and self.buckets <= MAX_BUCKETS):
            problems.append(
                Problem(
                    f"{self.buckets} is not a number of buckets",
                    field="buckets",
                    hint=f"it is a power of two, 1 to {MAX_BUCKETS}",
                )
            )
        if not (math.isfinite(self.timeout_s) and 0 < self.timeout_s <= MAX_TIMEOUT_S):
            problems.append(
                Problem(
                    f"{self.timeout_s:g} is not a timeout",
                    field="timeout",
                    hint=f"it is a number of seconds above 0, at most {MAX_TIMEOUT_S:.0f}",
                )
            )
        for field, version in (("ip4-src-address", 4), ("ip6-src-address", 6)):
            address = getattr(self, field.replace("-", "_"))
            if address is not None and address.version != version:
                problems.append(Problem(f"{address} is not an IPv{version} address", field=field))
        if problems:
            raise ConfigError(problems)


@dataclass(frozen=True, slots=True)
class InterfaceMark:
    """An interface whose traffic comes from pods: it is looked up in the return direction."""

    name: str
    nat4_in: bool = False
    nat6_in: bool = False


class ShowKind(enum.Enum):
    """What a `show` command asks for."""

    GENERAL = "general"
    VIPS = "vips"
    NODES = "nodes"
    TRACE = "trace"


@dataclass(frozen=True, slots=True)
class Show:
    """One `show` command of a script."""

    kind: ShowKind = ShowKind.GENERAL
    verbose: bool = False


@dataclass(frozen=True, slots=True)
class Config:
    """Everything that a set of files asks for."""

    vips: tuple[Vip, ...] = ()
    settings: Settings = Settings()
    interfaces: tuple[InterfaceMark, ...] = ()
    shows: tuple[Show, ...] = ()
    flush_flows: bool = False  # a script contains `test kube-proxy flowtable flush`
    trace: int = 0  # packets to trace
    sources: tuple[str, ...] = ()  # the files, as they were named
    notes: tuple[Problem, ...] = ()  # what was skipped, or is not honoured yet; never an error
