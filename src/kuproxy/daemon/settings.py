"""The daemon's own configuration: one TOML file, read strictly.

It says how the daemon runs, never what it forwards: that comes from the files it names, and from commands.
"""

from __future__ import annotations

import grp
import os
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from kuproxy.announce.settings import Announce, read_announce
from kuproxy.daemon.cache_choice import CacheChoice
from kuproxy.daemon.driver import DriverChoice
from kuproxy.daemon.log import LogFormat
from kuproxy.errors import ConfigError, Problem
from kuproxy.toml import read_toml

__all__ = ["DEFAULT_SOCKET", "DaemonSettings", "group_id", "load_settings"]

DEFAULT_SOCKET = "/run/kuproxy/ku.sock"
Port = Annotated[int, Meta(ge=1, le=65535)]


class _Table(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of the file's tables."""


class Api(_Table, frozen=True):
    """`[api]`: the Unix socket."""

    socket: str = DEFAULT_SOCKET
    group: str = ""  # whose members may change things; empty: root alone
    mode: Annotated[str, Meta(pattern="^0?[0-7]{3}$")] = "0660"


class Tcp(_Table, frozen=True):
    """`[tcp]`: the same interface over TCP, for holders of a token or of a client certificate."""

    address: str
    port: Port
    token_file: str = ""
    certificate: str = ""
    key: str = ""
    client_ca: str = ""


class Metrics(_Table, frozen=True):
    """`[metrics]`: health and metrics alone, for everybody who can reach it."""

    address: str = "127.0.0.1"
    port: Port = 9153


class Web(_Table, frozen=True):
    """`[web]`: the page and what it reads, for everybody who can reach it; nothing can be changed there."""

    address: str = "127.0.0.1"
    port: Port = 9154
    names: list[str] = []  # under which browsers reach it, beside addresses and localhost


class Driver(DriverChoice, _Table, frozen=True):
    """`[driver]`: how packets come to the workers."""


class Cache(CacheChoice, _Table, frozen=True):
    """`[cache]`: whether the kernel rewrites packets of established flows."""


class DaemonSettings(_Table, frozen=True):
    """The whole file."""

    files: list[str] = []
    state_directory: str = "/var/lib/kuproxy"
    interfaces: list[str] = []
    workers: Annotated[int, Meta(ge=0, le=64)] = 0  # 0: one for each core that the process may use
    log_format: LogFormat = "auto"
    worker_filter: bool = True  # of workers' system calls: seccomp.py
    api: Api = Api()
    tcp: Tcp | None = None
    metrics: Metrics | None = None
    web: Web | None = None
    driver: Driver = Driver()
    announce: Announce | None = None
    cache: Cache = Cache()

    def worker_count(self) -> int:
        return self.workers or min(64, len(os.sched_getaffinity(0)))

    def paths(self) -> tuple[Path, ...]:
        return tuple(map(Path, self.files))


def group_id(name: str) -> int | None:
    """None for the empty name.  Raises ConfigError."""
    if not name:
        return None
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise ConfigError(
            Problem(f"there is no group {name!r}", field="api.group", hint="create it, or name another")
        ) from None


def load_settings(path: Path | None) -> DaemonSettings:
    """Read the file; without one, the defaults.  Names of files in it are relative to its directory.

    Raises ConfigError with the file, the key, and what would be right.
    """
    if path is None:
        return DaemonSettings()
    content = read_toml(path)
    unknown = _unknown(content, DaemonSettings, "")
    if unknown:
        raise ConfigError(Problem(p.message, str(path), p.line, p.field, p.hint) for p in unknown)
    if isinstance(content.get("announce"), dict):
        read_announce(content["announce"], str(path))  # as the speakers do, with the same words
    try:
        settings = msgspec.convert(content, DaemonSettings)
    except msgspec.ValidationError as error:
        message, _, place = str(error).partition(" - at `")
        field = place.rstrip("`").removeprefix("$").lstrip(".")
        raise ConfigError(Problem(message, str(path), field=field)) from None
    _check(settings, str(path))
    here = path.parent
    return msgspec.structs.replace(settings, files=[str(here / name) for name in settings.files])


_TABLES: dict[str, type[msgspec.Struct]] = {
    "api": Api,
    "tcp": Tcp,
    "metrics": Metrics,
    "web": Web,
    "driver": Driver,
    "announce": Announce,
    "cache": Cache,
}


def _unknown(content: dict[str, Any], kind: type[msgspec.Struct], prefix: str) -> list[Problem]:
    """Keys that mean nothing, each with those that would."""
    known = kind.__struct_fields__
    problems = [
        Problem("is not known here", field=f"{prefix}{name}", hint=f"possible: {', '.join(known)}")
        for name in content
        if name not in known
    ]
    for name, table in _TABLES.items():
        if not prefix and isinstance(content.get(name), dict):
            problems += _unknown(content[name], table, f"{name}.")
    return problems


def _check(settings: DaemonSettings, file: str) -> None:
    problems = []
    tcp = settings.tcp
    if tcp is not None:
        if not tcp.token_file and not tcp.client_ca:
            problems.append(
                Problem(
                    "everybody could change everything",
                    file,
                    field="tcp",
                    hint="give token_file, or certificate, key and client_ca",
                )
            )
        if bool(tcp.certificate) != bool(tcp.key):
            problems.append(Problem("certificate and key go together", file, field="tcp"))
        if tcp.client_ca and not tcp.certificate:
            problems.append(Problem("client_ca needs certificate and key", file, field="tcp.client_ca"))
    if problems:
        raise ConfigError(problems)
