"""The daemon's TOML file: read strictly, refused with the key and what would be right."""

from __future__ import annotations

import re
import socket
from pathlib import Path

import pytest

from kuproxy.client import DEFAULT_SOCKET as CLIENT_SOCKET
from kuproxy.daemon.driver import DriverChoice
from kuproxy.daemon.notify import Notifier
from kuproxy.daemon.settings import DEFAULT_SOCKET, DaemonSettings, Metrics, Web, group_id, load_settings
from kuproxy.engine.wiring import DriverKind
from kuproxy.errors import ConfigError, PrivilegeError
from kuproxy.keeper.vault import Vault


def load(directory: Path, text: str) -> DaemonSettings:
    path = directory / "kuproxy.toml"
    path.write_text(text)
    return load_settings(path)


def test_defaults_and_relative_files(tmp_path: Path) -> None:
    assert load(tmp_path, "") == load_settings(None)
    settings = load(tmp_path, 'files = ["a.ku", "/b.yaml"]\n[api]\ngroup = "root"\n')
    assert settings.paths() == (tmp_path / "a.ku", Path("/b.yaml"))
    assert group_id(settings.api.group) == 0
    assert DEFAULT_SOCKET == CLIENT_SOCKET


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("colour = 1", "colour: is not known here; possible: files, state_directory"),
        (
            "[api]\nsokket = 'x'\n[tcp]\ntls = 1",
            "api.sokket: is not known here; possible: socket, group, mode",
        ),
        ("interfaces = 'eth0'", "interfaces: Expected `array`, got `str`"),
        ("[metrics]\nport = 0", "metrics.port: Expected `int` >= 1"),
        ("[api]\nmode = '0999'", "api.mode: Expected `str` matching regex"),
        ("[driver]\nkind = 'dpdk'", "driver.kind: Invalid enum value 'dpdk'"),
        ("[driver]\nmode = 'fast'", "driver.mode: Invalid enum value 'fast'"),
        ("[driver]\nname = 'af_xdp'", "driver.name: is not known here; possible: kind, mode"),
        ("[cache]\nflow_cache = 'yes'", "cache.flow_cache: Invalid enum value 'yes'"),
        ("[cache]\nflow_cache_entries = 1", "cache.flow_cache_entries: Expected `int` >= 2"),
        ("[cache]\nflow_cache_lease = 0", "cache.flow_cache_lease: Expected `int` >= 1"),
        ("[cache]\nentries = 1", "cache.entries: is not known here; possible: flow_cache, flow_cache_entries"),
        ("log_format = 'xml'", "log_format: Invalid enum value 'xml'"),
        ("[tcp]\naddress = '::1'\nport = 1", "tcp: everybody could change everything; give token_file"),
        (
            "[tcp]\naddress = '::1'\nport = 1\nclient_ca = 'x'",
            "tcp.client_ca: client_ca needs certificate and key",
        ),
        ("a = ", "is not TOML"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    assert said in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path / "kuproxy.toml"))


def test_the_driver_is_af_packet_unless_told_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = load(tmp_path, '[driver]\nkind = "af_xdp"\nmode = "generic"\n').driver
    assert (chosen.resolved(), chosen.mode) == (DriverKind.AF_XDP, "generic")
    opened: list[int] = []

    class Socket:
        def __init__(self, family: int, *_: int) -> None:
            opened.append(family)

        def close(self) -> None: ...

    monkeypatch.setattr(socket, "socket", Socket)
    assert DriverChoice().resolved() is DriverKind.AF_PACKET
    assert opened == [socket.AF_PACKET]

    def unknown(*_: int) -> None:
        raise OSError(97, "Address family not supported by protocol")

    monkeypatch.setattr(socket, "socket", unknown)
    assert DriverChoice().resolved() is DriverKind.AF_XDP, "a kernel without packet sockets"

    def forbidden(*_: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(socket, "socket", forbidden)
    with pytest.raises(PrivilegeError, match="CAP_NET_RAW"):
        DriverChoice().resolved()


def test_a_group_that_does_not_exist() -> None:
    with pytest.raises(ConfigError, match="there is no group 'no-such-group'"):
        group_id("no-such-group")


def test_systemd_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.settimeout(5)
        manager.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "30000000")
        monkeypatch.delenv("WATCHDOG_PID", raising=False)
        notifier = Notifier(Vault())
        assert notifier.watchdog_s == 15
        notifier.ready()
        notifier.reloading()
        notifier.alive()
        notifier.stopping()
        said = [manager.recv(100) for _ in range(4)]
    assert said[0] == b"READY=1"
    assert said[1].startswith(b"RELOADING=1\nMONOTONIC_USEC=")
    assert said[2:] == [b"WATCHDOG=1", b"STOPPING=1"]
    notifier.ready()  # nobody listens any more: no error
    monkeypatch.delenv("NOTIFY_SOCKET")
    monkeypatch.setenv("WATCHDOG_USEC", "1")
    monkeypatch.setenv("WATCHDOG_PID", "1")
    assert Notifier(Vault()).watchdog_s is None, "the watchdog is another process's"


def test_the_example_holds_the_defaults(tmp_path: Path) -> None:
    """And with its optional tables taken in, nothing in it is unknown."""
    text = (Path(__file__).parents[2] / "packaging/kuproxy.toml").read_text()
    assert load(tmp_path, text) == DaemonSettings()
    optional = re.sub(r"^# (?=\[|\w+ = )", "", text, flags=re.MULTILINE)
    assert load(tmp_path, optional).metrics == Metrics()
    assert load(tmp_path, optional).web == Web()
